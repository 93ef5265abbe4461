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
    assert_eq!(a.dims(), b.dims());
    let norm = |t: Tensor| t.sqr().and_then(|t| t.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()).unwrap().sqrt();
    norm((a - b).unwrap()) / norm(b.clone()).max(1e-3)
}

/// The same case in f64, without ReLU and cap: the same numbers, but `y` and its gradients hardly round.
fn exact(case: &Case) -> Result<Case> {
    let wide = |t: &Var| Var::from_tensor(&t.to_dtype(DType::F64)?);
    Ok(Case {
        x: wide(&case.x)?,
        w: wide(&case.w)?,
        b: case.b.as_ref().map(wide).transpose()?,
        residual: case.residual.as_ref().map(wide).transpose()?,
        how: Conv2d { relu: false, cap: None, ..case.how },
    })
}

/// The same case with the absolute value of every number: its results are the sums of the absolute values of all terms.
fn absolute(case: &Case) -> Result<Case> {
    let abs = |t: &Var| Var::from_tensor(&t.abs()?.detach());
    Ok(Case {
        x: abs(&case.x)?,
        w: abs(&case.w)?,
        b: case.b.as_ref().map(abs).transpose()?,
        residual: case.residual.as_ref().map(abs).transpose()?,
        how: case.how,
    })
}

/// The largest error of an element over its bound, which must not exceed 1.
///
/// A sum of `n` products in any order errs by at most about `(n + 1)·u·Σ|terms|`, `u = 2⁻²⁴`, whether or not its terms
/// cancel (Higham 2002, section 3.1); with many terms, whose roundings are as good as independent, by a small multiple of
/// `√n·u·Σ|terms|` (Higham and Mary 2019). We allow `(2√n + 1)·u·Σ|terms|`: up to four terms that is the first bound,
/// which can be reached, and beyond it the second with the multiple 2. Of 4900 random cases none used more than 0.6 of it.
fn excess(got: &Tensor, exact: &Tensor, absolute: &Tensor, terms: usize) -> Result<f64> {
    assert_eq!((got.dtype(), exact.dtype(), absolute.dtype()), (DType::F32, DType::F64, DType::F64));
    let flat = |t: &Tensor| t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let unit = f64::from(f32::EPSILON) / 2. * (2. * (terms as f64).sqrt() + 1.);
    let (got, exact, absolute) = (flat(got)?, flat(exact)?, flat(absolute)?);
    let each = got.iter().zip(&exact).zip(&absolute);
    Ok(each.map(|((g, e), a)| if g == e { 0. } else { (g - e).abs() / (unit * a) }).fold(0., f64::max))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// In f64, fused and composed agree, forward and in every gradient.
    #[test]
    fn equals_candle(s in sizes()) {
        let case = case(&s, DType::F64).unwrap();
        let expected = case.result(composed::conv2d).unwrap();
        prop_assert!(distance(&case.untracked(conv2d).unwrap(), &expected) < 1e-13);
        prop_assert!(distance(&case.result(conv2d).unwrap(), &expected) < 1e-13);
        // Candle's gradients of strided and unevenly padded convolutions are not always defined.
        if let Ok(expected) = case.gradients(composed::conv2d) {
            for (got, expected) in case.gradients(conv2d).unwrap().iter().zip(&expected) {
                prop_assert!(distance(got, expected) < 4e-13);
            }
        }
    }

    /// In f32, every element of the result and of every gradient errs by no more than its sum may.
    #[test]
    fn rounds_like_a_sum(s in sizes()) {
        let worst = errors(&s).unwrap();
        prop_assert!(worst.iter().all(|error| *error <= 1.), "{worst:?}");
    }
}

/// How much of its bound each f32 result uses: without and with a graph, then the gradients.
fn errors(s: &Sizes) -> Result<Vec<f64>> {
    let case = case(s, DType::F32)?;
    let (exact, absolute) = (exact(&case)?, absolute(&exact(&case)?)?);
    let taps = s.kernel[0] * s.kernel[1];
    let terms = s.inputs * taps + usize::from(s.bias) + usize::from(s.residual);
    let (y, sums) = (exact.untracked(composed::conv2d)?, absolute.untracked(composed::conv2d)?);
    let through = |t: &Tensor| {
        let t = if s.how.relu { t.relu()? } else { t.clone() };
        s.how.cap.map_or(Ok(t.clone()), |cap| t.minimum(f64::from(cap)))
    };
    let mut worst = Vec::new();
    for got in [case.untracked(conv2d)?, case.result(conv2d)?] {
        // ReLU and cap enlarge no error.
        worst.push(excess(&got.detach(), &through(&y)?, &sums, terms)?);
    }
    // Their own choice: where a result is within its rounding of 0 or of the cap, either side is right.
    let g = random(y.dims(), DType::F32, &mut rand_chacha::ChaCha8Rng::seed_from_u64(7))?.detach();
    let got = case.result(conv2d)?.detach();
    let mut masked = g.to_dtype(DType::F64)?;
    if s.how.relu {
        masked = (masked * got.gt(0.)?.to_dtype(DType::F64)?)?;
    }
    if let Some(cap) = s.how.cap {
        masked = (masked * got.lt(f64::from(cap))?.to_dtype(DType::F64)?)?;
    }
    let gradients = |case: &Case, g: &Tensor| -> Result<Vec<Tensor>> {
        // Where candle's gradient is not defined, ours in f64 is the judge, which `equals_differences` judges.
        let of = |op: Op| (case.result(op)? * g)?.sum_all()?.backward();
        let grads = of(composed::conv2d).or_else(|_| of(conv2d))?;
        Ok(case.vars().into_iter().map(|v| grads.get(v).expect("a gradient").clone()).collect())
    };
    let pixels = y.elem_count() / s.outputs;
    let terms = [s.outputs * taps * s.how.upsample.pow(2), pixels, pixels, 1];
    let terms = [Some(terms[0]), Some(terms[1]), s.bias.then_some(terms[2]), s.residual.then_some(terms[3])];
    let (exact, absolute) = (gradients(&exact, &masked)?, gradients(&absolute, &masked.abs()?)?);
    for (((got, exact), absolute), terms) in
        case.gradients(conv2d)?.iter().zip(&exact).zip(&absolute).zip(terms.into_iter().flatten())
    {
        worst.push(excess(got, exact, absolute, terms)?);
    }
    Ok(worst)
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
