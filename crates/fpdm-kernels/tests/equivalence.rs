//! The law of the crate: fused equals composed, in the result and in every gradient, whatever the shape, the memory
//! layout and the type.

mod operations;

use candle_core::{DType, Result, Tensor};
use operations::{Memory, Operation, Sizes, arguments, difference, loss, operations};
use proptest::prelude::*;

/// Compares one operation in all it computes; half precision is compared with the composed form in `f64`.
fn check(op: &Operation, memory: &[Memory], dtype: DType, tolerance: f64, seed: u64) -> Result<()> {
    let args = arguments(op, memory, dtype, seed)?;
    let exact = if dtype == DType::F64 || dtype == DType::F32 { dtype } else { DType::F64 };
    let views = args.iter().map(|a| a.view()).collect::<Result<Vec<_>>>()?;
    let wide = views.iter().map(|v| v.to_dtype(exact)).collect::<Result<Vec<_>>>()?;
    let fused = (op.fused)(&views)?;
    let composed = (op.composed)(&wide)?;
    assert_eq!(fused.dtype(), dtype, "{}", op.name);
    let error = difference(&fused, &composed)?;
    assert!(error <= tolerance, "{} {memory:?} {dtype:?}: off by {error}", op.name);

    let detached: Vec<Tensor> = views.iter().map(Tensor::detach).collect();
    let joined = (op.fused)(&detached)?;
    assert!(!joined.track_op(), "{}: history without a tracked argument", op.name);
    let error = difference(&joined, &composed)?;
    assert!(error <= tolerance, "{} {memory:?} {dtype:?} untracked: off by {error}", op.name);

    let (got, expected) = (loss(&fused)?.backward()?, loss(&composed)?.backward()?);
    for (arg, (name, _)) in args.iter().zip(&op.arguments) {
        let (Some(got), Some(expected)) = (got.get(&arg.var), expected.get(&arg.var)) else {
            panic!("{}: no gradient for {name}", op.name)
        };
        let error = difference(got, expected)?;
        assert!(error <= tolerance, "{} {memory:?} {dtype:?}: gradient of {name} off by {error}", op.name);
    }
    Ok(())
}

fn check_all(sizes: Sizes, memory: &[Memory], seed: u64) -> Result<()> {
    for op in operations(sizes) {
        check(&op, memory, DType::F64, 1e-12, seed)?;
        check(&op, memory, DType::F32, 1e-5, seed)?;
    }
    Ok(())
}

fn memory() -> impl Strategy<Value = Memory> {
    prop_oneof![Just(Memory::Dense), Just(Memory::Columns), Just(Memory::Swapped)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_shapes(
        batch in 1usize..4, tokens in prop_oneof![Just(1usize), 2usize..40],
        inner in 1usize..90, outer in 1usize..90, heads in 1usize..4,
        size in prop_oneof![Just(5usize), Just(8), Just(64), Just(72), 1usize..20],
        memory in prop::collection::vec(memory(), 5), seed in 0u64..1000,
    ) {
        check_all(Sizes { batch, tokens, inner, outer, heads, size }, &memory, seed).unwrap();
    }
}

/// Sizes that cross the blocking of the products: depth, row blocks, column panels.
#[test]
fn large_shapes() -> Result<()> {
    let sizes = [
        Sizes { batch: 2, tokens: 131, inner: 800, outer: 97, heads: 2, size: 72 },
        Sizes { batch: 1, tokens: 400, inner: 384, outer: 40, heads: 1, size: 64 },
        Sizes { batch: 3, tokens: 1, inner: 385, outer: 1030, heads: 3, size: 5 },
    ];
    sizes.into_iter().try_for_each(|s| check_all(s, &[Memory::Dense, Memory::Columns], 3))
}

/// On the CPU the joined operation is the separate ones, with the eps of the networks.
#[test]
fn a_joined_norm_is_the_separate_operations() -> Result<()> {
    for width in [1, 2, 24, 90] {
        let of = |shape: &[usize], seed| operations::normal(shape, seed, 1.)?.to_dtype(DType::F32);
        let (x, w, b) = (of(&[2, 5, 7], 1)?, of(&[width, 7], 2)?, of(&[width], 3)?);
        let (residual, gate) = (of(&[2, 5, width], 4)?, of(&[2, width], 5)?);
        let (shift, scale) = (of(&[2, width], 6)?, of(&[2, width], 7)?);
        let (sum, out) =
            fpdm_kernels::linear_gate_residual_norm((&x, &w, &b), (&residual, &gate), (&shift, &scale), 1e-6)?;
        let expected = fpdm_kernels::linear_gate_residual(&x, &w, &b, &residual, &gate)?;
        let normed = fpdm_kernels::layer_norm_modulate(&expected, &shift, &scale, 1e-6)?;
        assert_eq!((difference(&sum, &expected)?, difference(&out, &normed)?), (0., 0.), "width {width}");
    }
    Ok(())
}

#[test]
fn half_precision() -> Result<()> {
    let sizes = Sizes { batch: 2, tokens: 9, inner: 24, outer: 40, heads: 2, size: 8 };
    for op in operations(sizes) {
        for memory in [Memory::Dense, Memory::Columns] {
            check(&op, &[memory], DType::BF16, 2e-2, 5)?;
            check(&op, &[memory], DType::F16, 1e-2, 5)?;
        }
    }
    Ok(())
}

/// Nothing in, nothing out, and no division by the number of things.
#[test]
fn empty_batch() -> Result<()> {
    let x = Tensor::zeros((0, 4, 6), DType::F32, &candle_core::Device::Cpu)?;
    let w = Tensor::zeros((3, 6), DType::F32, x.device())?;
    assert_eq!(fpdm_kernels::linear(&x, &w, None)?.dims(), [0, 4, 3]);
    assert_eq!(fpdm_kernels::gelu(&x)?.dims(), [0, 4, 6]);
    Ok(())
}
