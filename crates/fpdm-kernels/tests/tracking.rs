//! No gradient is lost: each argument that is tracked gets one, whichever of the others are.

mod operations;

use candle_core::{DType, Result, Tensor};
use operations::{Memory, Sizes, arguments, difference, loss, operations};

#[test]
fn every_subset_of_tracked_arguments() -> Result<()> {
    let sizes = Sizes { batch: 2, tokens: 6, inner: 20, outer: 18, heads: 2, size: 6 };
    for op in operations(sizes) {
        let args = arguments(&op, &[Memory::Dense, Memory::Columns], DType::F64, 11)?;
        let views = args.iter().map(|a| a.view()).collect::<Result<Vec<_>>>()?;
        let all = loss(&(op.fused)(&views)?)?.backward()?;
        let value = (op.fused)(&views)?;
        for subset in 0u32..1 << args.len() {
            let tracked = |i: usize| subset >> i & 1 == 1;
            let pick = |(i, v): (usize, &Tensor)| if tracked(i) { v.clone() } else { v.detach() };
            let mixed: Vec<Tensor> = views.iter().enumerate().map(pick).collect();
            let y = (op.fused)(&mixed)?;
            assert_eq!(y.track_op(), subset != 0, "{} subset {subset:b}", op.name);
            assert!(difference(&y, &value)? <= 1e-13, "{} subset {subset:b}", op.name);
            let grads = loss(&y)?.backward()?;
            for (i, arg) in args.iter().enumerate().filter(|(i, _)| tracked(*i)) {
                let name = op.arguments[i].0;
                let Some(grad) = grads.get(&arg.var) else { panic!("{}: no gradient for {name}", op.name) };
                assert!(difference(grad, all.get(&arg.var).unwrap())? <= 1e-13, "{}: {name}", op.name);
                let largest = grad.abs()?.max_all()?.to_scalar::<f64>()?;
                assert!(largest > 1e-6, "{}: the gradient of {name} is zero", op.name);
            }
        }
    }
    Ok(())
}

/// A result may be used twice, and a gradient may arrive in a layout of its own.
#[test]
fn gradients_add_up_and_may_be_strided() -> Result<()> {
    let sizes = Sizes { batch: 2, tokens: 4, inner: 12, outer: 10, heads: 2, size: 4 };
    for op in operations(sizes) {
        let args = arguments(&op, &[Memory::Dense], DType::F64, 13)?;
        let views = args.iter().map(|a| a.view()).collect::<Result<Vec<_>>>()?;
        let twice = |f: &operations::Function| {
            let y = f(&views)?;
            let turned = y.transpose(0, 1)?.exp()?;
            (loss(&turned)? + loss(&y)? + y.sum_all()?)?.backward()
        };
        let (got, expected) = (twice(&op.fused)?, twice(&op.composed)?);
        for (arg, (name, _)) in args.iter().zip(&op.arguments) {
            let error = difference(got.get(&arg.var).unwrap(), expected.get(&arg.var).unwrap())?;
            assert!(error <= 1e-11, "{}: {name} off by {error}", op.name);
        }
    }
    Ok(())
}
