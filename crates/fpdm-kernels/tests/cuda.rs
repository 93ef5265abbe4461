//! Every operation on a GPU against its composed form in `f64` on the CPU: the result and every gradient, for random
//! shapes and layouts, in memory that was full of NaN.
#![cfg(feature = "cuda")]

mod gpu;
mod operations;

use candle_core::{DType, Device, Result, Tensor, Var};
use fpdm_kernels::cuda::{Adamw, Graph, adamw};
use fpdm_kernels::vjp;
use gpu::{alone, cases, device, poison};
use operations::{Argument, Memory, Operation, Sizes, arguments, difference, loss, normal, operations};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn check(op: &Operation, memory: &[Memory], dtype: DType, tolerance: f64, seed: u64) -> Result<()> {
    let device = device();
    let host: Vec<Argument> = arguments(op, memory, DType::F32, seed)?;
    // The reference sees the numbers as they are after rounding.
    let there = host
        .iter()
        .map(|a| Var::from_tensor(&a.var.to_dtype(dtype)?.to_device(&device)?))
        .collect::<Result<Vec<_>>>()?;
    let here = host
        .iter()
        .map(|a| Var::from_tensor(&a.var.to_dtype(dtype)?.to_dtype(DType::F64)?))
        .collect::<Result<Vec<_>>>()?;
    let views = |vars: &[Var]| host.iter().zip(vars).map(|(a, v)| a.view_of(v.as_tensor())).collect::<Result<Vec<_>>>();
    let (got_views, views) = (views(&there)?, views(&here)?);
    let expected = (op.composed)(&views)?;
    poison(expected.elem_count())?;
    let home = |t: &Tensor| t.to_device(&Device::Cpu)?.to_dtype(DType::F64);
    let got = (op.fused)(&got_views)?;
    assert_eq!(got.dtype(), dtype, "{}", op.name);
    let near = |what: &str, a: &Tensor, b: &Tensor| -> Result<()> {
        let error = difference(&home(a)?, b)?;
        assert!(error <= tolerance, "{} {memory:?} {dtype:?} {:?}, {what}: off by {error}", op.name, op.arguments);
        Ok(())
    };
    near("result", &got, &expected)?;
    let detached: Vec<Tensor> = got_views.iter().map(Tensor::detach).collect();
    poison(expected.elem_count())?;
    let joined = (op.fused)(&detached)?;
    assert!(!joined.track_op(), "{}: history without a tracked argument", op.name);
    near("untracked", &joined, &expected)?;

    let weights = normal(expected.dims(), 99, 1.)?.to_dtype(dtype)?;
    poison(expected.elem_count())?;
    let grads = (&got * weights.to_device(&device)?)?.sum_all()?.backward()?;
    let expected = (&expected * weights.to_dtype(DType::F64)?)?.sum_all()?.backward()?;
    for ((there, here), (name, _)) in there.iter().zip(&here).zip(&op.arguments) {
        let (Some(got), Some(expected)) = (grads.get(there), expected.get(here)) else {
            panic!("{}: no gradient for {name}", op.name)
        };
        near(&format!("gradient of {name}"), got, expected)?;
    }
    Ok(())
}

fn check_all(sizes: Sizes, memory: &[Memory], seed: u64) -> Result<()> {
    for op in operations(sizes) {
        check(&op, memory, DType::F32, 2e-5, seed)?;
        check(&op, memory, DType::BF16, 2e-2, seed)?;
        check(&op, memory, DType::F16, 4e-3, seed)?;
    }
    Ok(())
}

#[test]
fn random_shapes() -> Result<()> {
    let _alone = alone();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for seed in 0..cases(12) {
        let memory: Vec<Memory> =
            (0..5).map(|_| [Memory::Dense, Memory::Columns, Memory::Swapped][rng.random_range(0..3)]).collect();
        let sizes = Sizes {
            batch: rng.random_range(1..4),
            tokens: rng.random_range(1..70),
            inner: rng.random_range(1..20) * [1, 8][rng.random_range(0..2)],
            outer: rng.random_range(1..20) * [1, 8][rng.random_range(0..2)],
            heads: rng.random_range(1..4),
            size: if seed % 2 == 0 { rng.random_range(4..17) * 8 } else { rng.random_range(1..40) },
        };
        check_all(sizes, &memory, 100 * seed)?;
    }
    Ok(())
}

/// The sizes of the published networks, and every head size with kernels.
#[test]
fn network_shapes() -> Result<()> {
    let _alone = alone();
    for (heads, size, tokens) in [(16, 72, 256), (6, 64, 144), (2, 32, 77), (2, 128, 130)] {
        let inner = heads * size;
        check_all(Sizes { batch: 2, tokens, inner, outer: 2 * inner, heads, size }, &[Memory::Dense], 3)?;
    }
    for size in (32..=128).step_by(8) {
        let sizes = Sizes { batch: 2, tokens: 33, inner: 8, outer: 8, heads: 2, size };
        let op = operations(sizes).into_iter().find(|op| op.name == "attention").expect("attention");
        check(&op, &[Memory::Dense], DType::F32, 2e-5, 5)?;
        check(&op, &[Memory::Dense], DType::BF16, 2e-2, 5)?;
        check(&op, &[Memory::Dense], DType::F16, 4e-3, 5)?;
    }
    Ok(())
}

/// Slices of one wide matrix, as modulations are, with a tracked owner.
#[test]
fn slices_of_a_wide_matrix() -> Result<()> {
    let _alone = alone();
    let device = device();
    let (b, t, d) = (3, 20, 64);
    let wide = Var::from_tensor(&normal(&[b, 6 * d], 1, 1.)?.to_dtype(DType::F32)?.to_device(&device)?)?;
    let x = Var::from_tensor(&normal(&[b, t, d], 2, 1.)?.to_dtype(DType::F32)?.to_device(&device)?)?;
    let run = |f: &dyn Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>| {
        let part = |i: usize| wide.narrow(1, i * d, d);
        let y = f(&x, &part(1)?, &part(4)?)?;
        let grads = loss(&y.to_device(&Device::Cpu)?)?.backward()?;
        Ok::<_, candle_core::Error>((y, grads.get(&wide).cloned(), grads.get(&x).cloned()))
    };
    let (y, dwide, dx) = run(&|x, a, b| fpdm_kernels::layer_norm_modulate(x, a, b, 1e-6))?;
    let (y2, dwide2, dx2) = run(&|x, a, b| fpdm_kernels::composed::layer_norm_modulate(x, a, b, 1e-6))?;
    for (a, b) in [(Some(y), Some(y2)), (dwide, dwide2), (dx, dx2)] {
        let (a, b) = (a.expect("a gradient").to_device(&Device::Cpu)?, b.expect("a gradient").to_device(&Device::Cpu)?);
        assert!(difference(&a, &b)? < 1e-5);
    }
    Ok(())
}

#[test]
fn residuals() -> Result<()> {
    let _alone = alone();
    let device = device();
    for (rows, width) in [(1, 8), (3, 17), (64, 4096), (2, 295_000), (300, 1001)] {
        for (dtype, most) in [(DType::F32, 1e-6), (DType::BF16, 1e-6), (DType::F16, 1e-6)] {
            let (z, f) = (normal(&[rows, width], 1, 1.)?, normal(&[rows, width], 2, 1.)?);
            let (z, f) = (z.to_dtype(dtype)?, f.to_dtype(dtype)?);
            let wide = |t: &Tensor| t.to_dtype(DType::F64);
            let expected = fpdm_kernels::composed::residual_squares(&wide(&z)?, &wide(&f)?)?;
            poison(rows * width)?;
            let got = fpdm_kernels::residual_squares(&z.to_device(&device)?, &f.to_device(&device)?)?;
            let off = difference(&wide(&got.to_device(&Device::Cpu)?)?, &expected)?;
            assert!(got.dtype() == DType::F32 && off < most, "{rows} {width} {dtype:?}: off by {off}");
        }
    }
    Ok(())
}

/// A thousand replays with changing inputs and weights are what the same calls give one by one.
#[test]
fn replays_equal_calls() -> Result<()> {
    let _alone = alone();
    let device = device();
    let (b, t, heads, d) = (2, 33, 2, 64);
    let there = |shape: &[usize], seed: u64| normal(shape, seed, 0.1)?.to_dtype(DType::BF16)?.to_device(&device);
    let (x, w, bias) = (there(&[b, t, d], 1)?, there(&[3 * d, d], 2)?, there(&[3 * d], 3)?);
    let (shift, scale) = (there(&[b, d], 4)?, there(&[b, d], 5)?);
    let f = |x: &Tensor| {
        let h = fpdm_kernels::layer_norm_modulate(x, &shift, &scale, 1e-6)?;
        fpdm_kernels::attention(&fpdm_kernels::linear(&h, &w, Some(&bias))?, heads)
    };
    let graph = Graph::record(&device, || Ok(vec![f(&x)?]))?;
    for seed in 0..1000 {
        let fresh = there(&[b, t, d], 100 + seed)?;
        if seed % 100 == 50 {
            Graph::set(&w, &there(&[3 * d, d], 5000 + seed)?)?;
        }
        Graph::set(&x, &fresh)?;
        let got = graph.replay()?[0].copy()?;
        let expected = f(&fresh)?;
        let far = (got.to_dtype(DType::F32)? - expected.to_dtype(DType::F32)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert_eq!(far, 0., "replay {seed}");
    }
    assert!(Graph::set(&x, &w).unwrap_err().to_string().contains("expected"));
    Ok(())
}

#[test]
fn adamw_equals_its_formula() -> Result<()> {
    let _alone = alone();
    let device = device();
    let len = 100_003;
    let start = |seed: u64| normal(&[len], seed, 1.)?.to_dtype(DType::F32);
    let there = |t: &Tensor| t.to_device(&device)?.copy();
    let (p, g) = (start(1)?, start(2)?);
    let (m, v) = ((start(3)? * 0.1)?, (start(4)?.sqr()? * 0.1)?);
    let (dp, dm, dv, dg) = (there(&p)?, there(&m)?, there(&v)?, there(&g)?);
    let (ema, work) = (there(&p)?, Tensor::zeros(len, DType::BF16, &device)?);
    let how = Adamw { lr: 1e-2, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, step: 7, max_norm: 1. };
    let norm = adamw(how, [&dp, &dm, &dv, &dg], &[(0.9, &ema)], Some(&work))?.to_scalar::<f32>()?;
    let wide = |t: &Tensor| t.to_dtype(DType::F64)?.to_vec1::<f64>();
    let (p, m, v, g) = (wide(&p)?, wide(&m)?, wide(&v)?, wide(&g)?);
    let length = g.iter().map(|x| x * x).sum::<f64>().sqrt();
    assert!((f64::from(norm) / length - 1.).abs() < 1e-5);
    let home = |t: &Tensor| wide(&t.to_device(&Device::Cpu)?);
    let (gp, ge, gw) = (home(&dp)?, home(&ema)?, home(&work)?);
    for i in 0..len {
        let d = g[i] / (length + 1e-6);
        let (a, b) = (0.9 * m[i] + 0.1 * d, 0.99 * v[i] + 0.01 * d * d);
        let q = p[i] * (1. - 1e-3) - 1e-2 * (a / (1. - 0.9f64.powi(7))) / ((b / (1. - 0.99f64.powi(7))).sqrt() + 1e-8);
        assert!((gp[i] - q).abs() < 2e-6 * q.abs().max(1.), "{i}: {} instead of {q}", gp[i]);
        assert!((ge[i] - (0.9 * p[i] + 0.1 * q)).abs() < 2e-6 * q.abs().max(1.));
        assert!((gw[i] - q).abs() <= q.abs() * 4e-3 + 1e-6);
    }
    let bad = Tensor::full(f32::NAN, len, &device)?;
    let norm = adamw(how, [&dp, &dm, &dv, &bad], &[(0.9, &ema)], Some(&work))?.to_scalar::<f32>()?;
    assert!(norm.is_nan());
    assert_eq!(home(&dp)?, gp, "a step without numbers changed the weights");
    Ok(())
}

/// The functions of a way back in the caller's hands, twice over so that sums are sums, at rows that fill a block's turn and
/// rows that do not.
#[test]
fn written_out() -> Result<()> {
    let _alone = alone();
    let device = device();
    for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::BF16, 1e-2), (DType::F16, 2e-3)] {
        for (b, t, d) in [(1, 1, 8), (2, 33, 40), (3, 77, 384), (2, 130, 1152), (1, 9, 7), (2, 70, 2048)] {
            let here = |shape: &[usize], seed| normal(shape, seed, 1.)?.to_dtype(dtype)?.to_dtype(DType::F64);
            let there = |t: &Tensor| t.to_dtype(dtype)?.to_device(&device);
            let near = |what: &str, got: &Tensor, expected: &Tensor| -> Result<()> {
                let off = difference(&got.to_device(&Device::Cpu)?.to_dtype(DType::F64)?, expected)?;
                assert!(off < tolerance, "{what} ({b}, {t}, {d}) {dtype:?}: off by {off}");
                Ok(())
            };
            let (x, g, plus) = (here(&[b, t, d], 1)?, here(&[b, t, d], 2)?, here(&[b, t, d], 3)?);
            let (scale, row) = (here(&[b, d], 4)?, here(&[d], 5)?);

            let (mut sum, mut of_host) = (vjp::WeightSum::new(&there(&row)?)?, vjp::WeightSum::new(&row)?);
            for _ in 0..2 {
                poison(b * t * d)?;
                let (y, dx) = vjp::gelu_gradient(there(&x)?, there(&g)?, Some(&mut sum))?;
                let (y_host, dx_host) = vjp::gelu_gradient(x.clone(), g.clone(), Some(&mut of_host))?;
                near("gelu", &y, &y_host)?;
                near("gradient of gelu", &dx, &dx_host)?;
            }
            let sum = sum.into_inner();
            assert_eq!(sum.dtype(), DType::F32);
            near("sum of rows", &sum, &of_host.into_inner())?;

            for plus in [None, Some(&plus)] {
                poison(b * t * d)?;
                let of_device = plus.map(&there).transpose()?;
                let mut both = vjp::WeightSum::shaped((b, 2 * d), &there(&scale)?)?;
                let mut both_host = vjp::WeightSum::shaped((b, 2 * d), &scale)?;
                for _ in 0..2 {
                    let (x_there, scale_there, g_there) = (there(&x)?, there(&scale)?, there(&g)?);
                    let dx =
                        vjp::norm_gradients((&x_there, &scale_there), &g_there, of_device.as_ref(), 1e-6, &mut both)?;
                    let dx_host = vjp::norm_gradients((&x, &scale), &g, plus, 1e-6, &mut both_host)?;
                    near("norm", &dx, &dx_host)?;
                }
                near("norm's vectors", &both.into_inner(), &both_host.into_inner())?;
            }

            let (mut of_gate, mut of_gate_host) = (vjp::WeightSum::new(&there(&scale)?)?, vjp::WeightSum::new(&scale)?);
            for _ in 0..2 {
                poison(b * t * d)?;
                let dy = vjp::gate_gradients(&there(&g)?, &there(&scale)?, &there(&x)?, &mut of_gate)?;
                let dy_host = vjp::gate_gradients(&g, &scale, &x, &mut of_gate_host)?;
                near("gated", &dy, &dy_host)?;
            }
            near("gate", &of_gate.into_inner(), &of_gate_host.into_inner())?;

            let (mut sum, mut of_host) = (vjp::GradientSum::default(), vjp::GradientSum::default());
            for term in [&x, &g, &plus] {
                sum.add(there(term)?.copy()?)?;
                of_host.add(term.clone())?;
            }
            near("sum of gradients", &sum.into_inner().expect("terms"), &of_host.into_inner().expect("terms"))?;
            // Into the type of the first.
            let mut wide = vjp::GradientSum::default();
            wide.add(there(&x)?.to_dtype(DType::F32)?)?;
            wide.add(there(&g)?)?;
            let wide = wide.into_inner().expect("terms");
            assert_eq!(wide.dtype(), DType::F32);
            near("sum of two types", &wide, &(&x + &g)?)?;
        }
    }
    Ok(())
}

/// Rows of a table: some named often, some never.
#[test]
fn lookups() -> Result<()> {
    let _alone = alone();
    let device = device();
    for (rows, width, batch) in [(2, 384, 256), (11, 7, 30), (1001, 1152, 64), (5, 8, 1)] {
        for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::BF16, 4e-3), (DType::F16, 5e-4)] {
            let table = Var::from_tensor(&normal(&[rows, width], 1, 1.)?.to_dtype(dtype)?.to_device(&device)?)?;
            let index: Vec<u32> = (0..batch as u32).map(|i| i * i % (rows as u32 / 2 + 1)).collect();
            let index = Tensor::new(index, &device)?;
            let weights = normal(&[batch, width], 2, 1.)?.to_dtype(dtype)?;
            poison(rows * width)?;
            let found = fpdm_kernels::lookup(&table, &index)?;
            let got = (&found * weights.to_device(&device)?)?.sum_all()?.backward()?;
            let host = Var::from_tensor(&table.to_device(&Device::Cpu)?.to_dtype(DType::F64)?)?;
            let expected = fpdm_kernels::composed::lookup(&host, &index.to_device(&Device::Cpu)?)?;
            let home = |t: &Tensor| t.to_device(&Device::Cpu)?.to_dtype(DType::F64);
            assert_eq!(difference(&home(&found)?, &expected)?, 0.);
            let expected = (expected * weights.to_dtype(DType::F64)?)?.sum_all()?.backward()?;
            let (got, expected) = (got.get(&table).expect("a gradient"), expected.get(&host).expect("a gradient"));
            let off = difference(&home(got)?, expected)?;
            assert!(off < tolerance, "({rows}, {width}) {batch} {dtype:?}: off by {off}");
        }
    }
    Ok(())
}

/// Cosines and sines of times as a network has them, up to a thousand radians.
#[test]
fn times_as_waves() -> Result<()> {
    let _alone = alone();
    let device = device();
    for (batch, half) in [(1, 128), (64, 128), (7, 3)] {
        let t = Tensor::from_vec((0..batch).map(|i| 999.5 / (i + 1) as f32).collect::<Vec<_>>(), batch, &Device::Cpu)?;
        let frequencies = (0..half).map(|i| 1e4f32.powf(-(i as f32) / half as f32)).collect::<Vec<_>>();
        let frequencies = Tensor::from_vec(frequencies, half, &Device::Cpu)?;
        // The angle is rounded to f32: what follows is compared, not that.
        let angles = t.unsqueeze(1)?.broadcast_mul(&frequencies.unsqueeze(0)?)?.to_dtype(DType::F64)?;
        let expected = Tensor::cat(&[angles.cos()?, angles.sin()?], 1)?;
        for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::BF16, 4e-3), (DType::F16, 5e-4)] {
            poison(2 * batch * half)?;
            let found = fpdm_kernels::waves(&t.to_device(&device)?, &frequencies.to_device(&device)?, dtype)?;
            assert_eq!((found.dtype(), found.dims()), (dtype, &[batch, 2 * half][..]));
            let off = (found.to_device(&Device::Cpu)?.to_dtype(DType::F64)? - &expected)?.abs()?.max_all()?;
            let off = off.to_scalar::<f64>()?;
            assert!(off < tolerance, "({batch}, {half}) {dtype:?}: off by {off}");
        }
    }
    Ok(())
}
