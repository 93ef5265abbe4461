//! The convolution against candle's, and against differences.

use candle_core::{DType, Device, Result, Tensor, Var};
use fpdm_kernels::{Conv2d, composed, conv2d, depthwise_conv2d};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};

struct Case {
    x: Var,
    w: Var,
    b: Option<Var>,
    residual: Option<Var>,
    how: Conv2d,
}

fn random(shape: &[usize], dtype: DType, rng: &mut impl Rng) -> Result<Var> {
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?)
}

#[derive(Clone, Debug)]
struct Sizes {
    batch: usize,
    inputs: usize,
    outputs: usize,
    picture: [usize; 2],
    kernel: [usize; 2],
    how: Conv2d,
    bias: bool,
    residual: bool,
    seed: u64,
}

prop_compose! {
    fn sizes()(
        batch in 1usize..3, inputs in 1usize..6, outputs in 1usize..20, height in 1usize..24, width in 1usize..40,
        kh in 1usize..5, kw in 1usize..5, stride in 1usize..4, before in 0usize..3, after in 0usize..3,
        upsample in 1usize..4, relu: bool, capped: bool, bias: bool, residual: bool, seed: u64,
    ) -> Sizes {
        // Candle's backward pass knows no kernel smaller than the padding, nor needs it here.
        let (before, after) = (before.min(kh - 1).min(kw - 1), after.min(kh - 1).min(kw - 1));
        // Where results are about 1 in size, so that some are above and some below.
        let how = Conv2d { stride, before, after, upsample, relu, cap: capped.then_some(1) };
        let side = |size: usize, k: usize| size.max(k);
        Sizes { batch, inputs, outputs, picture: [side(height, kh), side(width, kw)], kernel: [kh, kw], how, bias, residual, seed }
    }
}

fn case(s: &Sizes, dtype: DType) -> Result<Case> {
    let rng = &mut rand_chacha::ChaCha8Rng::seed_from_u64(s.seed);
    let x = random(&[s.batch, s.inputs, s.picture[0], s.picture[1]], dtype, rng)?;
    let w = random(&[s.outputs, s.inputs, s.kernel[0], s.kernel[1]], dtype, rng)?;
    let b = if s.bias { Some(random(&[s.outputs], dtype, rng)?) } else { None };
    let shape = conv2d(&x.detach(), &w.detach(), None, None, s.how)?.dims().to_vec();
    let residual = if s.residual { Some(random(&shape, dtype, rng)?) } else { None };
    Ok(Case { x, w, b, residual, how: s.how })
}

type Op = fn(&Tensor, &Tensor, Option<&Tensor>, Option<&Tensor>, Conv2d) -> Result<Tensor>;

impl Case {
    fn vars(&self) -> Vec<&Var> {
        [Some(&self.x), Some(&self.w), self.b.as_ref(), self.residual.as_ref()].into_iter().flatten().collect()
    }

    fn result(&self, op: Op) -> Result<Tensor> {
        op(&self.x, &self.w, self.b.as_deref(), self.residual.as_deref(), self.how)
    }

    fn untracked(&self, op: Op) -> Result<Tensor> {
        let [b, residual] = [&self.b, &self.residual].map(|t| t.as_ref().map(|t| t.detach()));
        op(&self.x.detach(), &self.w.detach(), b.as_ref(), residual.as_ref(), self.how)
    }

    /// The gradients of a sum with uneven weights.
    fn gradients(&self, op: Op) -> Result<Vec<Tensor>> {
        let y = self.result(op)?;
        let rng = &mut rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let grads = (&y * random(y.dims(), y.dtype(), rng)?.detach())?.sum_all()?.backward()?;
        Ok(self.vars().into_iter().map(|v| grads.get(v).expect("a gradient").clone()).collect())
    }
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    distance_over(a, b, 1e-3)
}

/// The distance over the length of `b`, or over `least` if that is more.
fn distance_over(a: &Tensor, b: &Tensor, least: f64) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let norm = |t: Tensor| t.sqr().and_then(|t| t.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()).unwrap().sqrt();
    norm((a - b).unwrap()) / norm(b.clone()).max(least)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Fused and composed agree, forward and in every gradient.
    #[test]
    fn equals_candle(s in sizes()) {
        for (dtype, tolerance) in [(DType::F32, 2e-6), (DType::F64, 1e-13)] {
            let case = case(&s, dtype).unwrap();
            let expected = case.result(composed::conv2d).unwrap();
            prop_assert!(distance(&case.untracked(conv2d).unwrap(), &expected) < tolerance);
            prop_assert!(distance(&case.result(conv2d).unwrap(), &expected) < tolerance);
            // Candle's gradients of strided and unevenly padded convolutions are not always defined.
            if let Ok(expected) = case.gradients(composed::conv2d) {
                // A weight or bias may have one element, a sum of as many random terms as the result has: where they
                // cancel, rounding in f32 is still that of a sum of their usual size. f64 is judged as it is.
                let terms = case.result(conv2d).unwrap().elem_count() as f64;
                let usual = if dtype == DType::F32 { 0.5 * terms.sqrt() } else { 1e-3 };
                for (got, expected) in case.gradients(conv2d).unwrap().iter().zip(&expected) {
                    prop_assert!(distance_over(got, expected, usual) < 4. * tolerance, "{dtype:?}");
                }
            }
        }
    }
}

/// Every gradient equals the differences, in f64, where the composed form is no judge.
#[test]
fn equals_differences() -> Result<()> {
    let hows = [
        Conv2d { before: 1, after: 1, ..Conv2d::default() },
        Conv2d { stride: 2, after: 1, ..Conv2d::default() },
        Conv2d { stride: 2, before: 1, after: 1, ..Conv2d::default() },
        Conv2d { upsample: 2, before: 1, after: 1, ..Conv2d::default() },
        Conv2d { stride: 3, upsample: 2, before: 2, after: 0, relu: true, cap: None },
        Conv2d { stride: 2, before: 1, after: 1, relu: true, cap: Some(1), ..Conv2d::default() },
    ];
    for how in hows {
        let sizes = Sizes {
            batch: 2,
            inputs: 3,
            outputs: 9,
            picture: [6, 5],
            kernel: [3, 3],
            how,
            bias: true,
            residual: true,
            seed: 5,
        };
        let case = case(&sizes, DType::F64)?;
        let gradients = case.gradients(conv2d)?;
        let weights = random(case.result(conv2d)?.dims(), DType::F64, &mut rand_chacha::ChaCha8Rng::seed_from_u64(7))?;
        for (var, gradient) in case.vars().into_iter().zip(gradients) {
            let start = var.as_detached_tensor().copy()?;
            let direction = random(start.dims(), DType::F64, &mut rand_chacha::ChaCha8Rng::seed_from_u64(8))?.detach();
            let at = |t: f64| -> Result<f64> {
                var.set(&(&start + (&direction * t)?)?)?;
                (case.untracked(conv2d)? * weights.detach())?.sum_all()?.to_scalar()
            };
            let step = 1e-6;
            let expected = (at(step)? - at(-step)?) / (2. * step);
            var.set(&start)?;
            let got = (gradient * &direction)?.sum_all()?.to_scalar::<f64>()?;
            assert!((got - expected).abs() < 1e-6 * expected.abs().max(1.), "{how:?}: {got} for {expected}");
        }
    }
    Ok(())
}

#[test]
fn half_precision_is_computed_in_f32() -> Result<()> {
    let how = Conv2d { before: 1, after: 1, relu: true, ..Conv2d::default() };
    let s = Sizes {
        batch: 1,
        inputs: 8,
        outputs: 8,
        picture: [9, 9],
        kernel: [3, 3],
        how,
        bias: true,
        residual: true,
        seed: 1,
    };
    for dtype in [DType::BF16, DType::F16] {
        let case = case(&s, dtype)?;
        let y = case.untracked(conv2d)?;
        assert_eq!(y.dtype(), dtype);
        let wide = |t: &Var| t.detach().to_dtype(DType::F32);
        let (b, r) = (wide(case.b.as_ref().unwrap())?, wide(case.residual.as_ref().unwrap())?);
        let expected = composed::conv2d(&wide(&case.x)?, &wide(&case.w)?, Some(&b), Some(&r), how)?;
        assert!(distance(&y.to_dtype(DType::F32)?, &expected) < 4e-3);
        assert_eq!(case.gradients(conv2d)?.len(), 4);
    }
    Ok(())
}

#[test]
fn nan_is_not_hidden_by_the_activation() -> Result<()> {
    let x = Tensor::new(&[[[[f32::NAN, -1., 1., 7.]]]], &Device::Cpu)?;
    let w = Tensor::ones((1, 1, 1, 1), DType::F32, &Device::Cpu)?;
    let how = Conv2d { relu: true, cap: Some(6), ..Conv2d::default() };
    for op in [
        |x: &Tensor, w: &Tensor, how| conv2d(x, w, None, None, how),
        |x: &Tensor, w: &Tensor, how| depthwise_conv2d(x, w, None, how),
    ] {
        let y = op(&x, &w, how)?.flatten_all()?.to_vec1::<f32>()?;
        assert!(y[0].is_nan() && y[1..] == [0., 1., 6.]);
    }
    Ok(())
}

#[test]
fn bad_arguments_are_named() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let (x, w) = (zeros(&[1, 2, 4, 4]), zeros(&[3, 2, 3, 3]));
    let how = Conv2d::default();
    let message = |x: &Tensor, w: &Tensor, b: Option<&Tensor>, r: Option<&Tensor>, how| {
        conv2d(x, w, b, r, how).unwrap_err().to_string()
    };
    assert!(message(&zeros(&[4, 4]), &w, None, None, how).contains("`x` must have four dimensions"));
    assert!(message(&x, &zeros(&[3, 3]), None, None, how).contains("`w` must have four dimensions"));
    assert!(message(&x, &zeros(&[3, 5, 3, 3]), None, None, how).contains("`w` must have shape [3, 2, 3, 3]"));
    assert!(message(&x, &w, Some(&zeros(&[4])), None, how).contains("`b` must have shape [3]"));
    assert!(
        message(&x, &w, None, Some(&zeros(&[1, 3, 4, 4])), how).contains("`residual` must have shape [1, 3, 2, 2]")
    );
    assert!(message(&zeros(&[1, 2, 2, 2]), &w, None, None, how).contains("larger than the padded picture"));
    assert!(message(&x, &w, None, None, Conv2d { stride: 0, ..how }).contains("must be positive"));
}
