//! Convolutions and norms of pictures on a GPU against `f64` on the CPU: results and every gradient, for random shapes,
//! in memory that was full of NaN.
#![cfg(feature = "cuda")]

mod gpu;

use candle_core::{DType, Device, Result, Tensor, Var};
use fpdm_kernels::{Conv2d, channel_affine, composed, conv2d, depthwise_conv2d, group_moments};
use gpu::{alone, cases, device, poison};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Normal numbers that `dtype` holds exactly, in f64 here.
fn numbers(shape: &[usize], dtype: DType, rng: &mut ChaCha8Rng) -> Result<Tensor> {
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?.to_dtype(DType::F64)
}

fn home(t: &Tensor) -> Result<Tensor> {
    t.to_device(&Device::Cpu)?.to_dtype(DType::F64)
}

/// The norm of the difference over that of the expected.
fn distance(got: &Tensor, expected: &Tensor) -> Result<f64> {
    assert_eq!(got.dims(), expected.dims());
    let norm = |t: Tensor| t.sqr()?.sum_all()?.to_scalar::<f64>().map(f64::sqrt);
    Ok(norm((home(got)? - expected)?)? / norm(expected.clone())?.max(1e-3))
}

#[derive(Clone, Debug)]
struct Case {
    batch: usize,
    inputs: usize,
    outputs: usize,
    picture: [usize; 2],
    kernel: [usize; 2],
    how: Conv2d,
    bias: bool,
    residual: bool,
}

impl Case {
    /// 3×3, with everything that can come after it, and a result as large as the picture.
    fn same() -> Self {
        let how = Conv2d { before: 1, after: 1, ..Conv2d::default() };
        let (inputs, outputs, picture, kernel) = (64, 64, [19, 40], [3, 3]);
        Self { batch: 2, inputs, outputs, picture, kernel, how, bias: true, residual: true }
    }
}

/// Rounding of the type: that of the sum, of its terms, and of the activation.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2e-5,
        DType::F16 => 2e-3,
        _ => 1e-2,
    }
}

fn check(case: &Case, dtype: DType, seed: u64) -> Result<()> {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let how = case.how;
    let exact = Conv2d { relu: false, cap: None, ..how };
    let x = numbers(&[case.batch, case.inputs, case.picture[0], case.picture[1]], dtype, rng)?;
    let w = numbers(&[case.outputs, case.inputs, case.kernel[0], case.kernel[1]], dtype, rng)?;
    let b = if case.bias { Some(numbers(&[case.outputs], dtype, rng)?) } else { None };
    let shape = conv2d(&x, &w, None, None, exact)?.dims().to_vec();
    let residual = if case.residual { Some(numbers(&shape, dtype, rng)?) } else { None };
    let here = [Some(x), Some(w), b, residual];
    let vars = |there: bool| -> Result<Vec<Option<Var>>> {
        let place =
            |t: &Tensor| Var::from_tensor(&if there { t.to_dtype(dtype)?.to_device(&device())? } else { t.clone() });
        here.iter().map(|t| t.as_ref().map(place).transpose()).collect()
    };
    let (there, here) = (vars(true)?, vars(false)?);
    let run = |v: &[Option<Var>], tracked: bool, how: Conv2d| {
        let t: Vec<Option<Tensor>> =
            v.iter().map(|v| v.as_ref().map(|v| if tracked { v.as_tensor().clone() } else { v.detach() })).collect();
        conv2d(t[0].as_ref().expect("x"), t[1].as_ref().expect("w"), t[2].as_ref(), t[3].as_ref(), how)
    };
    let most = tolerance(dtype);
    let expected = run(&here, false, how)?;
    poison(expected.elem_count())?;
    let got = run(&there, false, how)?;
    assert!(got.is_contiguous() && got.dtype() == dtype && !got.track_op());
    let off = distance(&got, &expected)?;
    assert!(off <= most, "{case:?} {dtype:?}: result off by {off}");

    poison(expected.elem_count())?;
    let y = run(&there, true, how)?;
    let off = distance(&y, &expected)?;
    assert!(off <= most, "{case:?} {dtype:?}: recorded result off by {off}");
    let upstream = numbers(&shape, dtype, rng)?;
    let loss = (&y * upstream.to_dtype(dtype)?.to_device(&device())?)?.sum_all()?;
    poison(expected.elem_count())?;
    let grads = loss.backward()?;
    // Near 0 and the cap the rounded result may lie on the other side than the exact one: what counts is its own side.
    let y = home(&y)?;
    let mut inside = Tensor::ones_like(&y)?;
    if how.relu {
        inside = (inside * y.gt(0f64)?.to_dtype(DType::F64)?)?;
    }
    if let Some(cap) = how.cap {
        inside = (inside * y.lt(f64::from(cap))?.to_dtype(DType::F64)?)?;
    }
    let expected = (run(&here, true, exact)? * (upstream * inside)?)?.sum_all()?.backward()?;
    for (name, (there, here)) in ["x", "w", "b", "residual"].iter().zip(there.iter().zip(&here)) {
        let (Some(there), Some(here)) = (there, here) else { continue };
        let (got, expected) = (grads.get(there).expect("a gradient"), expected.get(here).expect("a gradient"));
        let off = distance(got, expected)?;
        assert!(off <= most, "{case:?} {dtype:?}: gradient of {name} off by {off}");
    }
    Ok(())
}

const TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

#[test]
fn random_convolutions() -> Result<()> {
    let _alone = alone();
    let rng = &mut ChaCha8Rng::seed_from_u64(3);
    for seed in 0..cases(48) {
        let kernel = match seed % 6 {
            0 => [1, 1],
            1 => [rng.random_range(1..6), rng.random_range(1..6)],
            _ => [3, 3],
        };
        let least = kernel[0].min(kernel[1]);
        let how = Conv2d {
            stride: rng.random_range(1..if kernel == [3, 3] { 3 } else { 4 }),
            before: rng.random_range(0..3).min(least - 1),
            after: rng.random_range(0..3).min(least - 1),
            upsample: [1, 1, 2, 3][rng.random_range(0..4)],
            relu: rng.random(),
            cap: [None, None, Some(2)][rng.random_range(0..3)],
        };
        let sides = |rng: &mut ChaCha8Rng| [1, 8][rng.random_range(0..2)] * rng.random_range(1..6) + 5;
        let case = Case {
            batch: rng.random_range(1..4),
            inputs: [1, 3, 4, 16, 40, 64, 65, 130][rng.random_range(0..8)],
            outputs: [1, 3, 4, 8, 9, 64, 70, 130][rng.random_range(0..8)],
            picture: [sides(rng), sides(rng)],
            kernel,
            how,
            bias: rng.random(),
            residual: rng.random(),
        };
        for dtype in TYPES {
            check(&case, dtype, seed)?;
        }
    }
    Ok(())
}

/// What the codecs ask for, with more tiles than a GPU has multiprocessors.
#[test]
fn codec_convolutions() -> Result<()> {
    let _alone = alone();
    let base = Case { batch: 3, picture: [96, 112], ..Case::same() };
    let same = base.how;
    for case in [
        Case { how: Conv2d { relu: true, ..same }, ..base.clone() },
        Case { how: Conv2d { upsample: 2, ..same }, bias: false, residual: false, picture: [48, 56], ..base.clone() },
        Case { how: Conv2d { stride: 2, ..same }, bias: false, residual: false, ..base.clone() },
        Case { how: Conv2d { stride: 2, before: 0, ..same }, ..base.clone() },
        Case { outputs: 3, residual: false, ..base.clone() },
        Case { inputs: 4, residual: false, ..base.clone() },
        Case { inputs: 256, outputs: 512, picture: [16, 24], batch: 2, ..base.clone() },
    ]
    .into_iter()
    .take(cases(7) as usize)
    {
        for dtype in TYPES {
            check(&case, dtype, 5)?;
        }
    }
    Ok(())
}

/// Both sides of every choice between kernels for 3×3 in half precision: how many channels there are and are made, how
/// long lines are, whether they are whole units, and whether the result is as large as the picture.
#[test]
fn chosen_convolutions() -> Result<()> {
    let _alone = alone();
    let base = Case::same();
    let same = base.how;
    let twice = Conv2d { upsample: 2, ..same };
    let of = |inputs, outputs, picture| Case { inputs, outputs, picture, ..base.clone() };
    let cases_of = [
        // Few channels, lines of each kind, whole units and not.
        Case { how: Conv2d { relu: true, ..same }, ..base.clone() },
        of(64, 64, [9, 64]),
        of(64, 64, [5, 128]),
        of(64, 64, [5, 136]),
        of(64, 64, [7, 41]),
        of(16, 16, [1, 8]),
        Case { how: Conv2d { cap: Some(1), ..same }, ..of(17, 33, [18, 24]) },
        of(3, 9, [17, 16]),
        of(3, 8, [17, 16]),
        // Just too many for that, on either side.
        of(65, 64, [19, 24]),
        of(64, 65, [19, 24]),
        of(80, 40, [5, 64]),
        // Many channels.
        Case { bias: false, ..of(130, 200, [17, 40]) },
        Case { how: Conv2d { relu: true, cap: Some(2), ..same }, ..of(96, 129, [9, 64]) },
        Case { residual: false, ..of(256, 128, [3, 128]) },
        of(128, 130, [7, 44]),
        // Enlarged, whole units and not.
        Case { how: twice, ..of(64, 64, [9, 12]) },
        Case { how: Conv2d { relu: true, ..twice }, residual: false, ..of(48, 64, [5, 64]) },
        Case { how: twice, bias: false, ..of(70, 132, [6, 32]) },
        Case { how: twice, ..of(70, 132, [11, 20]) },
        Case { how: twice, ..of(64, 64, [9, 10]) },
        Case { how: Conv2d { upsample: 3, ..same }, ..of(64, 64, [9, 8]) },
        // Smaller and larger than the picture.
        Case { how: Conv2d { before: 0, after: 0, ..same }, ..of(64, 64, [18, 24]) },
        Case { how: Conv2d { after: 2, ..same }, ..of(64, 64, [18, 24]) },
        Case { how: Conv2d { before: 2, after: 0, ..same }, ..of(64, 128, [18, 24]) },
        // Several tiles for every block.
        Case { batch: 5, ..of(16, 16, [160, 128]) },
        Case { batch: 5, ..of(40, 24, [176, 64]) },
        Case { batch: 5, ..of(20, 130, [64, 128]) },
        Case { batch: 3, ..of(20, 260, [96, 64]) },
    ];
    let most = cases(cases_of.len() as u64) as usize;
    for case in cases_of.into_iter().take(most) {
        for dtype in [DType::BF16, DType::F16] {
            check(&case, dtype, 6)?;
        }
    }
    Ok(())
}

#[test]
fn depthwise_convolutions() -> Result<()> {
    let _alone = alone();
    let rng = &mut ChaCha8Rng::seed_from_u64(4);
    for seed in 0..cases(24) as usize {
        let kernel = [3, 5][seed % 2];
        let how = Conv2d {
            stride: rng.random_range(1..3),
            before: rng.random_range(0..kernel),
            after: rng.random_range(0..kernel),
            relu: rng.random(),
            cap: [None, Some(6)][rng.random_range(0..2)],
            ..Conv2d::default()
        };
        let shape = [rng.random_range(1..4), rng.random_range(1..40), rng.random_range(5..40), rng.random_range(5..40)];
        for dtype in TYPES {
            let (x, w) = (numbers(&shape, dtype, rng)?, numbers(&[shape[1], 1, kernel, kernel], dtype, rng)?);
            let b = numbers(&[shape[1]], dtype, rng)?;
            let expected = composed::depthwise_conv2d(&x, &w, Some(&b), how)?;
            let there = |t: &Tensor| t.to_dtype(dtype)?.to_device(&device());
            poison(expected.elem_count())?;
            let got = depthwise_conv2d(&there(&x)?, &there(&w)?, Some(&there(&b)?), how)?;
            let off = distance(&got, &expected)?;
            assert!(off <= tolerance(dtype), "{shape:?} {how:?} {dtype:?}: off by {off}");
        }
    }
    Ok(())
}

#[test]
fn group_norms() -> Result<()> {
    let _alone = alone();
    let rng = &mut ChaCha8Rng::seed_from_u64(5);
    for (shape, groups) in [([2, 128, 32, 32], 32), ([3, 12, 5, 7], 4), ([1, 6, 9, 8], 1), ([2, 64, 64, 48], 32)] {
        for (dtype, offset) in [(DType::F32, 0.), (DType::F32, 30.), (DType::BF16, 0.), (DType::F16, 8.)] {
            let x = (numbers(&shape, dtype, rng)? + offset)?.to_dtype(dtype)?.to_dtype(DType::F64)?;
            let there = x.to_dtype(dtype)?.to_device(&device())?;
            poison(x.elem_count())?;
            let (mean, variance) = group_moments(&there, groups)?;
            let (expected_mean, expected_variance) = composed::group_moments(&x, groups)?;
            assert!(distance(&mean, &expected_mean)? < 1e-5 && mean.dtype() == DType::F32);
            let off = distance(&variance, &expected_variance)?;
            assert!(off < 1e-5, "{shape:?} {groups} {dtype:?}: variance off by {off}");

            let of = |rng: &mut ChaCha8Rng| numbers(&[shape[0], shape[1]], DType::F32, rng);
            let (factor, summand) = (of(rng)?, of(rng)?);
            let narrow = |t: &Tensor| t.to_dtype(DType::F32)?.to_device(&device());
            for silu in [false, true] {
                poison(x.elem_count())?;
                let got = channel_affine(&there, &narrow(&factor)?, &narrow(&summand)?, silu)?;
                let off = distance(&got, &composed::channel_affine(&x, &factor, &summand, silu)?)?;
                assert!(off <= tolerance(dtype), "{shape:?} {dtype:?} {silu}: off by {off}");
            }
        }
    }
    Ok(())
}
