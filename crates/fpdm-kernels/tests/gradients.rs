//! The gradient of every argument of every operation, by finite differences.

mod operations;

use candle_core::{DType, Device, Result, Tensor};
use operations::{Memory, Sizes, arguments, loss, operations};

#[test]
fn gradients_match_finite_differences() -> Result<()> {
    let sizes = Sizes { batch: 2, tokens: 3, inner: 5, outer: 7, heads: 2, size: 3 };
    for op in operations(sizes) {
        for memory in [Memory::Dense, Memory::Columns, Memory::Swapped] {
            let args = arguments(&op, &[memory], DType::F64, 7)?;
            let views = args.iter().map(|a| a.view()).collect::<Result<Vec<_>>>()?;
            let grads = loss(&(op.fused)(&views)?)?.backward()?;
            for (i, arg) in args.iter().enumerate() {
                let name = op.arguments[i].0;
                let grad = grads.get(&arg.var).unwrap_or_else(|| panic!("{}: no gradient for {name}", op.name));
                let grad = grad.flatten_all()?.to_vec1::<f64>()?;
                let flat = arg.var.flatten_all()?.to_vec1::<f64>()?;
                let at = |k: usize, step: f64| {
                    let mut moved = flat.clone();
                    moved[k] += step;
                    let stored = Tensor::from_vec(moved, arg.var.dims(), &Device::Cpu)?;
                    let mut views: Vec<Tensor> = views.iter().map(Tensor::detach).collect();
                    views[i] = arg.view_of(&stored)?;
                    loss(&(op.fused)(&views)?)?.to_scalar::<f64>()
                };
                for k in (0..flat.len()).step_by(1 + flat.len() / 40) {
                    let numeric = (at(k, 1e-5)? - at(k, -1e-5)?) / 2e-5;
                    let error = (numeric - grad[k]).abs();
                    assert!(
                        error <= 1e-7 * (1. + numeric.abs()),
                        "{} {memory:?}, {name}[{k}]: {} instead of {numeric}",
                        op.name,
                        grad[k]
                    );
                }
            }
        }
    }
    Ok(())
}
