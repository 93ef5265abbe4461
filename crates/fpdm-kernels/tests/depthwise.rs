//! The depthwise convolution against its composed form, and that against candle's grouped one.

use candle_core::{DType, Device, Result, Tensor, Var};
use fpdm_kernels::{Conv2d, composed, depthwise_conv2d};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};

fn random(shape: &[usize], dtype: DType, rng: &mut impl Rng) -> Result<Tensor> {
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let norm = |t: Tensor| t.sqr().and_then(|t| t.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()).unwrap().sqrt();
    norm((a - b).unwrap()) / norm(b.clone()).max(1e-3)
}

#[derive(Clone, Debug)]
struct Sizes {
    x: [usize; 4],
    kernel: [usize; 2],
    how: Conv2d,
    bias: bool,
    seed: u64,
}

prop_compose! {
    fn sizes()(
        batch in 1usize..3, channels in 1usize..7, height in 1usize..40, width in 1usize..70, kh in 1usize..6,
        kw in 1usize..6, stride in 1usize..4, before in 0usize..4, after in 0usize..4, relu: bool, capped: bool,
        bias: bool, seed: u64,
    ) -> Sizes {
        let how = Conv2d { stride, before, after, upsample: 1, relu, cap: capped.then_some(1) };
        Sizes { x: [batch, channels, height.max(kh), width.max(kw)], kernel: [kh, kw], how, bias, seed }
    }
}

fn arguments(s: &Sizes, dtype: DType) -> Result<(Tensor, Tensor, Option<Tensor>)> {
    let rng = &mut rand_chacha::ChaCha8Rng::seed_from_u64(s.seed);
    let x = random(&s.x, dtype, rng)?;
    let w = random(&[s.x[1], 1, s.kernel[0], s.kernel[1]], dtype, rng)?;
    let b = s.bias.then(|| random(&[s.x[1]], dtype, rng)).transpose()?;
    Ok((x, w, b))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn equals_composed(s in sizes()) {
        for (dtype, tolerance) in [(DType::F32, 2e-6), (DType::F64, 1e-13)] {
            let (x, w, b) = arguments(&s, dtype).unwrap();
            let expected = composed::depthwise_conv2d(&x, &w, b.as_ref(), s.how).unwrap();
            prop_assert!(distance(&depthwise_conv2d(&x, &w, b.as_ref(), s.how).unwrap(), &expected) < tolerance);
        }
    }
}

#[test]
fn composed_equals_the_grouped_convolution_of_candle() -> Result<()> {
    for (stride, padding, kernel) in [(1, 1, 3), (2, 1, 3), (1, 2, 5), (2, 2, 5), (3, 0, 2)] {
        let rng = &mut rand_chacha::ChaCha8Rng::seed_from_u64(kernel as u64);
        let x = random(&[2, 5, 11, 14], DType::F64, rng)?;
        let w = random(&[5, 1, kernel, kernel], DType::F64, rng)?;
        let how = Conv2d { stride, before: padding, after: padding, ..Conv2d::default() };
        let expected = x.conv2d(&w, padding, stride, 1, 5)?;
        assert!(distance(&composed::depthwise_conv2d(&x, &w, None, how)?, &expected) < 1e-14, "{how:?}");
    }
    Ok(())
}

/// Tracked arguments get their gradients, which equal the differences.
#[test]
fn gradients_equal_differences() -> Result<()> {
    let rng = &mut rand_chacha::ChaCha8Rng::seed_from_u64(3);
    let vars = [&[2, 3, 7, 9][..], &[3, 1, 5, 3], &[3]].map(|shape| Var::from_tensor(&random(shape, DType::F64, rng)?));
    let [x, w, b] = vars.map(|var: Result<Var>| var.expect("a variable"));
    let how = Conv2d { stride: 2, before: 1, after: 2, relu: true, cap: Some(1), ..Conv2d::default() };
    let y = depthwise_conv2d(&x, &w, Some(&b), how)?;
    let uneven = random(y.dims(), DType::F64, rng)?;
    let grads = (y * &uneven)?.sum_all()?.backward()?;
    for var in [&x, &w, &b] {
        let (start, direction) = (var.as_detached_tensor().copy()?, random(var.dims(), DType::F64, rng)?);
        let at = |t: f64| -> Result<f64> {
            var.set(&(&start + (&direction * t)?)?)?;
            let y = depthwise_conv2d(&x.detach(), &w.detach(), Some(&b.detach()), how)?;
            (y * &uneven)?.sum_all()?.to_scalar()
        };
        let expected = (at(1e-6)? - at(-1e-6)?) / 2e-6;
        var.set(&start)?;
        let got = (grads.get(var).expect("a gradient") * &direction)?.sum_all()?.to_scalar::<f64>()?;
        assert!((got - expected).abs() < 1e-6 * expected.abs().max(1.), "{got} for {expected}");
    }
    Ok(())
}

#[test]
fn half_precision_is_computed_in_f32() -> Result<()> {
    let rng = &mut rand_chacha::ChaCha8Rng::seed_from_u64(4);
    let how = Conv2d { before: 1, after: 1, ..Conv2d::default() };
    for dtype in [DType::BF16, DType::F16] {
        let (x, w) = (random(&[1, 4, 9, 9], dtype, rng)?, random(&[4, 1, 3, 3], dtype, rng)?);
        let wide = |t: &Tensor| t.to_dtype(DType::F32);
        let y = depthwise_conv2d(&x, &w, None, how)?;
        assert_eq!(y.dtype(), dtype);
        let expected = composed::depthwise_conv2d(&wide(&x)?, &wide(&w)?, None, how)?;
        assert!(distance(&wide(&y)?, &expected) < 4e-3);
    }
    Ok(())
}

#[test]
fn bad_arguments_are_named() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let (x, w, how) = (zeros(&[1, 2, 4, 4]), zeros(&[2, 1, 3, 3]), Conv2d::default());
    let message =
        |x: &Tensor, w: &Tensor, b: Option<&Tensor>, how| depthwise_conv2d(x, w, b, how).unwrap_err().to_string();
    assert!(message(&zeros(&[4, 4]), &w, None, how).contains("`x` must have four dimensions"));
    assert!(message(&x, &zeros(&[3, 3]), None, how).contains("`w` must have four dimensions"));
    assert!(message(&x, &zeros(&[2, 2, 3, 3]), None, how).contains("`w` must have shape [2, 1, 3, 3]"));
    assert!(message(&x, &w, Some(&zeros(&[3])), how).contains("`b` must have shape [2]"));
    assert!(message(&zeros(&[1, 2, 2, 2]), &w, None, how).contains("larger than the padded picture"));
    assert!(message(&x, &w, None, Conv2d { stride: 0, ..how }).contains("must be positive"));
    assert!(message(&x, &w, None, Conv2d { upsample: 2, ..how }).contains("upsample must be 1"));
}
