//! One table of maps with known fixed points, every solver.

use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor, Var};
use fpdm_core::rng::{self, Stream};
use fpdm_core::{
    Anderson, Broyden, Budget, Divergence, Error, FixedPointMap, Iterate, Picard, Result, Solver, Stagnation,
    StopReason, StopRule, Tolerance, solve, solve_recorded,
};
use proptest::prelude::*;

struct Case {
    name: &'static str,
    map: Box<dyn FixedPointMap>,
    z0: Tensor,
    /// Whether plain iteration converges.
    contracts: bool,
}

fn affine(ratio: f64) -> Box<dyn FixedPointMap> {
    Box::new(move |z: &Tensor| -> Result<Tensor> { Ok(z.affine(ratio, 1. - ratio)?) })
}

/// `z ↦ z·A + b` with a symmetric `A` whose eigenvalues are spread evenly over `[−norm, norm]`.
fn linear(dim: usize, norm: f64, seed: u64) -> Result<Box<dyn FixedPointMap>> {
    let mut rng = rng::stream(seed, Stream::Init, 0);
    let v = rng::normal((1, dim), &mut rng, DType::F64, &Device::Cpu)?;
    let b = rng::normal((1, dim), &mut rng, DType::F64, &Device::Cpu)?;
    let eigenvalues: Vec<f64> = (0..dim).map(|i| norm * (1. - 2. * i as f64 / (dim - 1).max(1) as f64)).collect();
    let eigenvalues = Tensor::new(eigenvalues, &Device::Cpu)?;
    let map = move |z: &Tensor| -> Result<Tensor> {
        // Householder: a reflection is its own inverse, so reflect, scale, reflect is symmetric.
        let reflect = |z: &Tensor| -> Result<Tensor> {
            let along = z.broadcast_mul(&v)?.sum_keepdim(1)?.broadcast_div(&v.sqr()?.sum_keepdim(1)?)?;
            Ok((z - (along.broadcast_mul(&v)? * 2.)?)?)
        };
        Ok(reflect(&reflect(z)?.broadcast_mul(&eigenvalues)?)?.broadcast_add(&b)?)
    };
    Ok(Box::new(map))
}

fn rotation() -> Result<Box<dyn FixedPointMap>> {
    let turn = Tensor::new(&[[0.6f64, 0.8], [-0.8, 0.6]], &Device::Cpu)?;
    Ok(Box::new(move |z: &Tensor| -> Result<Tensor> { Ok(z.matmul(&turn)?.affine(1., 0.5)?) }))
}

fn start(batch: usize, dim: usize) -> Result<Tensor> {
    let indices: Vec<u64> = (0..batch as u64).collect();
    rng::normal_batch(3, Stream::Noise, &indices, dim, DType::F64, &Device::Cpu)
}

fn maps() -> Result<Vec<Case>> {
    let case = |name, map, dim, contracts| -> Result<Case> { Ok(Case { name, map, z0: start(3, dim)?, contracts }) };
    Ok(vec![
        case("affine 0.9", affine(0.9), 4, true)?,
        case("affine 0.99", affine(0.99), 4, true)?,
        case("affine 0.999", affine(0.999), 4, true)?,
        case("cos", Box::new(|z: &Tensor| -> Result<Tensor> { Ok(z.cos()?) }), 4, true)?,
        case("200 dimensions", linear(200, 0.9, 1)?, 200, true)?,
        case("rotation", rotation()?, 2, false)?,
    ])
}

fn solvers() -> Vec<(&'static str, Box<dyn Solver>)> {
    vec![
        ("picard", Box::new(Picard::default())),
        ("damped picard", Box::new(Picard { damp: 0.3 })),
        ("anderson", Box::new(Anderson::default())),
        ("mixed anderson", Box::new(Anderson { memory: 8, mixing: 0.7, ..Default::default() })),
        ("broyden", Box::new(Broyden::default())),
    ]
}

struct Counted<'a>(&'a dyn FixedPointMap, AtomicUsize);

impl FixedPointMap for Counted<'_> {
    fn apply(&self, z: &Tensor) -> Result<Tensor> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.apply(z)
    }
}

/// `‖f(z) − z‖` of the worst sample.
fn residual(f: &dyn FixedPointMap, z: &Tensor) -> Result<f64> {
    let fz = f.apply(z)?;
    Ok(Iterate { z: z.clone(), next: fz.clone(), fz }.worst(0)?.abs)
}

fn values(z: &Tensor) -> Result<Vec<f64>> {
    Ok(z.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?)
}

fn gap(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok(values(a)?.iter().zip(values(b)?).map(|(a, b)| (a - b).abs()).fold(0., f64::max))
}

#[test]
fn every_solver_on_every_map() -> Result<()> {
    for case in maps()? {
        for (name, solver) in solvers() {
            let f = Counted(&*case.map, AtomicUsize::new(0));
            let mut stop = (Budget(50_000), Tolerance { abs: 1e-10, rel: 0., every: 1 });
            if name == "picard" && !case.contracts {
                let found = solve(&*solver, &f, case.z0.clone(), &mut Budget(1000))?;
                assert!(residual(&*case.map, &found.z)? > 0.1, "plain iteration cannot solve {}", case.name);
                continue;
            }
            let found = solve(&*solver, &f, case.z0.clone(), &mut stop)?;
            println!("{:15} {name:15} {:6} applications", case.name, found.applications);
            assert_eq!(found.reason, StopReason::Converged, "{} by {name}", case.name);
            assert!(
                residual(&*case.map, &found.z)? < 1e-8,
                "{} by {name}: {}",
                case.name,
                residual(&*case.map, &found.z)?
            );
            assert_eq!(found.applications, found.iters, "{} by {name}", case.name);
            assert_eq!(found.applications, f.1.load(Ordering::Relaxed), "{} by {name}", case.name);
            if name == "picard" && case.name == "cos" {
                assert!(values(&found.z)?.iter().all(|z| (z - 0.739_085_133_215_160_6).abs() < 1e-9));
            }
        }
    }
    Ok(())
}

#[test]
fn quasi_newton_needs_fewer_applications() -> Result<()> {
    let f = linear(200, 0.99, 2)?;
    let spent = |solver: &dyn Solver| -> Result<usize> {
        let mut stop = (Budget(5000), Tolerance { abs: 1e-8, rel: 0., every: 1 });
        Ok(solve(solver, &*f, start(1, 200)?, &mut stop)?.applications)
    };
    let (picard, anderson, broyden) =
        (spent(&Picard::default())?, spent(&Anderson::default())?, spent(&Broyden::default())?);
    println!("picard {picard}, anderson {anderson}, broyden {broyden}");
    assert!(2 * anderson < picard && 2 * broyden < picard, "picard {picard}, anderson {anderson}, broyden {broyden}");
    Ok(())
}

/// In half precision rounding ends a solve early, so what is compared is how far the first applications get.
#[test]
fn acceleration_survives_low_precision() -> Result<()> {
    let f64s = linear(200, 0.97, 4)?;
    let answer = solve(&Broyden::default(), &*f64s, start(2, 200)?, &mut Budget(400))?.z;
    for dtype in [DType::F32, DType::BF16] {
        let f = |z: &Tensor| -> Result<Tensor> { Ok(f64s.apply(&z.to_dtype(DType::F64)?)?.to_dtype(dtype)?) };
        let error = |solver: &dyn Solver| -> Result<f64> {
            let z = solve(solver, &f, start(2, 200)?.to_dtype(dtype)?, &mut Budget(20))?.finite()?.z;
            gap(&z, &answer)
        };
        let (picard, anderson, broyden) =
            (error(&Picard::default())?, error(&Anderson::default())?, error(&Broyden::default())?);
        println!("{dtype:?}: picard {picard:.2e}, anderson {anderson:.2e}, broyden {broyden:.2e}");
        assert!(2. * anderson < picard && 2. * broyden < picard, "{dtype:?}: {picard} {anderson} {broyden}");
    }
    Ok(())
}

#[test]
fn n_picard_applications_give_the_nth_iterate() -> Result<()> {
    let f = affine(0.5);
    let mut z = start(2, 3)?;
    for n in 0..6 {
        let found = solve(&Picard::default(), &*f, start(2, 3)?, &mut Budget(n))?;
        assert_eq!((found.applications, found.iters, found.reason), (n, n, StopReason::Budget));
        assert_eq!(values(&found.z)?, values(&z)?);
        z = f.apply(&z)?;
    }
    Ok(())
}

#[test]
fn a_sample_does_not_notice_its_batch() -> Result<()> {
    // Samples that converge at different speeds: an estimate shared by the batch would show.
    let f = |z: &Tensor| -> Result<Tensor> {
        let rates = Tensor::new(&[0.9f64, 0.5, -0.7, 0.2, 0.95], &Device::Cpu)?;
        Ok((z.sin()?.broadcast_mul(&rates)? + 0.3)?)
    };
    let z0 = start(3, 5)?;
    for (name, solver) in solvers() {
        let together = solve(&*solver, &f, z0.clone(), &mut Budget(9))?.z;
        for b in 0..3 {
            let alone = solve(&*solver, &f, z0.narrow(0, b, 1)?, &mut Budget(9))?.z;
            assert!(gap(&together.narrow(0, b, 1)?, &alone)? < 1e-9, "{name}, sample {b}");
        }
    }
    Ok(())
}

#[test]
fn every_dtype_and_rank() -> Result<()> {
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
        let tolerance = match dtype {
            DType::F64 => 1e-9,
            DType::F32 => 1e-5,
            _ => 0.02,
        };
        for dims in [vec![4], vec![2, 3], vec![2, 3, 4], vec![1, 4, 2, 2], vec![]] {
            let z0 = Tensor::zeros(dims.clone(), dtype, &Device::Cpu)?;
            for (name, solver) in solvers() {
                let found = solve(&*solver, &*affine(0.5), z0.clone(), &mut Budget(60))?.finite()?;
                assert_eq!((found.z.dims(), found.z.dtype()), (&dims[..], dtype), "{name}");
                let ones = Tensor::ones(dims.clone(), dtype, &Device::Cpu)?;
                assert!(gap(&found.z, &ones)? < tolerance, "{name} in {dtype:?} on {dims:?}: {}", found.z);
            }
        }
    }
    Ok(())
}

#[test]
fn a_fixed_point_reached_exactly_stays() -> Result<()> {
    // 0.5·1 + 0.5 is 1 to the last bit: residuals and differences are all zero. The other sample is still moving.
    let z0 = Tensor::new(&[[1f32, 1.], [0., 5.]], &Device::Cpu)?;
    for (name, solver) in solvers() {
        let found = solve_recorded(&*solver, &*affine(0.5), z0.clone(), &mut Budget(60))?.finite()?;
        assert_eq!(values(&found.z.narrow(0, 0, 1)?)?, [1., 1.], "{name}");
        assert!(gap(&found.z, &z0.ones_like()?)? < 1e-5, "{name}: {}", found.z);
        assert_eq!(found.residuals.len(), 60);
    }
    Ok(())
}

#[test]
fn an_accelerated_step_differentiates_as_a_picard_step() -> Result<()> {
    // With z ↦ a·z + b and constant corrections, n steps give dz/db = Σ_{j<n} aʲ for every solver.
    let a = 0.5;
    for (name, solver) in [
        ("picard", Box::new(Picard::default()) as Box<dyn Solver>),
        ("anderson", Box::new(Anderson::default())),
        ("broyden", Box::new(Broyden::default())),
    ] {
        let b = Var::from_tensor(&Tensor::new(&[[1f64, 2.]], &Device::Cpu)?)?;
        let bias = b.as_tensor().clone();
        let f = move |z: &Tensor| -> Result<Tensor> { Ok(((z * a)? + &bias)?) };
        let z = solve(&*solver, &f, Tensor::zeros((1, 2), DType::F64, &Device::Cpu)?, &mut Budget(4))?.z;
        let grads = z.sum_all()?.backward()?;
        let got = values(grads.get(&b).expect("b has a gradient"))?;
        let want: f64 = (0..4).map(|j| a.powi(j)).sum();
        assert!(got.iter().all(|g| (g - want).abs() < 1e-12), "{name}: {got:?}, not {want}");
    }
    Ok(())
}

#[test]
fn rules_stop_and_start_again() -> Result<()> {
    let z0 = start(1, 2)?;
    let doubling = |z: &Tensor| -> Result<Tensor> { Ok(z.affine(2., 1.)?) };
    let mut stop = (Budget(100), Divergence::new(10.), Stagnation::new(3));
    for _ in 0..2 {
        // Used twice: the first residual of the first solve must not be remembered.
        let found = solve(&Picard::default(), &doubling, z0.clone(), &mut stop)?;
        assert_eq!((found.reason, found.iters), (StopReason::Diverged, 5));
        let found = solve(&Picard::default(), &*rotation()?, z0.clone(), &mut stop)?;
        assert_eq!((found.reason, found.iters < 100), (StopReason::Stagnated, true));
    }
    let mut rules: Vec<Box<dyn fpdm_core::StopRule>> = vec![Box::new(Budget(7)), Box::new(Tolerance::default())];
    assert_eq!(solve(&Picard::default(), &*affine(0.999), z0, &mut rules)?.reason, StopReason::Budget);
    Ok(())
}

#[test]
fn a_batch_waits_for_its_worst_sample() -> Result<()> {
    let f = affine(0.5);
    let near = Tensor::new(&[[1.0625f64]], &Device::Cpu)?;
    let far = Tensor::new(&[[1025f64]], &Device::Cpu)?;
    let iters = |z0: &Tensor| -> Result<usize> {
        Ok(solve(&Picard::default(), &*f, z0.clone(), &mut Tolerance { abs: 1e-3, rel: 0., every: 1 })?.iters)
    };
    assert_eq!(iters(&Tensor::cat(&[&near, &far], 0)?)?, iters(&far)?);
    assert!(iters(&near)? < iters(&far)?);
    Ok(())
}

#[test]
fn bad_input_is_an_error_that_names_it() -> Result<()> {
    let z0 = start(2, 2)?;
    let f = affine(0.5);
    let message = |solver: &dyn Solver, f: &dyn FixedPointMap, z0: &Tensor, stop: &mut dyn fpdm_core::StopRule| {
        solve(solver, f, z0.clone(), stop).expect_err("must be refused").to_string()
    };
    let plain = Picard::default();
    for (got, want) in [
        (message(&Picard { damp: 1. }, &*f, &z0, &mut Budget(2)), "Picard.damp"),
        (message(&Picard { damp: f64::NAN }, &*f, &z0, &mut Budget(2)), "Picard.damp"),
        (message(&Anderson { mixing: 0., ..Default::default() }, &*f, &z0, &mut Budget(2)), "Anderson.mixing"),
        (
            message(&Anderson { regularisation: -1., ..Default::default() }, &*f, &z0, &mut Budget(2)),
            "Anderson.regularisation",
        ),
        (message(&plain, &*f, &z0, &mut Tolerance { every: 0, ..Default::default() }), "Tolerance.every"),
        (message(&plain, &*f, &z0, &mut Tolerance { rel: -1., ..Default::default() }), "Tolerance.rel"),
        (message(&plain, &*f, &z0, &mut Stagnation::new(0)), "Stagnation.patience"),
        (message(&plain, &*f, &z0, &mut Divergence::new(1.)), "Divergence.factor"),
        (message(&plain, &*f, &z0.narrow(0, 0, 0)?, &mut Budget(2)), "z0"),
    ] {
        assert!(got.contains(want), "{got}");
    }
    let narrower = |z: &Tensor| -> Result<Tensor> { Ok(z.narrow(1, 0, 1)?) };
    let single = |z: &Tensor| -> Result<Tensor> { Ok(z.to_dtype(DType::F32)?) };
    for (name, solver) in solvers() {
        for map in [&narrower as &dyn FixedPointMap, &single] {
            let error = solve(&*solver, map, z0.clone(), &mut Budget(3)).expect_err("another shape or dtype");
            assert!(matches!(error, Error::Shape { .. }), "{name}: {error}");
        }
    }
    Ok(())
}

#[test]
fn numbers_that_are_none_are_reported_with_their_count() -> Result<()> {
    let calls = AtomicUsize::new(0);
    let f = move |z: &Tensor| -> Result<Tensor> {
        let n = calls.fetch_add(1, Ordering::Relaxed);
        Ok(z.cos()?.affine(1., if n % 4 == 3 { f64::NAN } else { 0. })?)
    };
    for (name, solver) in solvers() {
        let error =
            solve(&*solver, &f, start(2, 2)?, &mut Tolerance { rel: 0., ..Default::default() }).expect_err("NaN");
        assert!(matches!(error, Error::NonFinite { iter: 4, .. }), "{name}: {error}");
    }
    let infinite = |z: &Tensor| -> Result<Tensor> { Ok(z.affine(1., f64::INFINITY)?) };
    let found = solve(&Picard::default(), &infinite, start(2, 2)?, &mut Budget(2))?;
    assert!(matches!(found.finite(), Err(Error::NonFinite { iter: 2, .. })));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    /// Anderson and Broyden solve whatever Picard solves, on random contractions of random size.
    #[test]
    fn random_contractions_are_solved(dim in 1usize..24, batch in 1usize..4, norm in 0.05f64..0.95, seed in 0u64..1000) {
        let f = linear(dim, norm, seed).unwrap();
        for (name, solver) in solvers() {
            let mut stop = (Budget(3000), Tolerance { abs: 1e-9, rel: 0., every: 1 });
            let found = solve(&*solver, &*f, start(batch, dim).unwrap(), &mut stop).unwrap();
            prop_assert_eq!(found.reason, StopReason::Converged, "{} in {} dimensions", name, dim);
            prop_assert_eq!(found.iters, found.applications);
            prop_assert!(residual(&*f, &found.z).unwrap() < 1e-7, "{}", name);
        }
    }
}

/// Who leaps lands where the iterates are; what stands between is not looked at.
#[test]
fn leaps_land_on_iterates() -> Result<()> {
    for case in maps()? {
        for (name, solver) in solvers() {
            let mut item = None;
            for n in 1..=5 {
                item = solver.iterate(&*case.map, case.z0.clone()).nth(n - 1).transpose()?;
                let Some(leapt) = solver.leap(&*case.map, &case.z0, n) else {
                    assert!(name != "picard");
                    continue;
                };
                assert_eq!(name, "picard");
                let (leapt, item) = (leapt?, item.as_ref().expect("an iterate"));
                for (a, b) in [(&leapt.z, &item.z), (&leapt.fz, &item.fz), (&leapt.next, &item.next)] {
                    assert_eq!(values(a)?, values(b)?, "{} {n}", case.name);
                }
            }
            // With a rule that looks at every iterate and one that does not.
            let all = solve(
                &*solver,
                &*case.map,
                case.z0.clone(),
                &mut (Budget(5), Tolerance { abs: 0., rel: 0., every: 1 }),
            )?;
            let last = solve(&*solver, &*case.map, case.z0.clone(), &mut Budget(5))?;
            assert_eq!((values(&all.z)?, all.iters, all.applications), (values(&last.z)?, 5, 5));
            assert_eq!(values(&last.z)?, values(&item.expect("an iterate").next)?);
            assert_eq!(last.applications, 5);
        }
    }
    let rules: Vec<Box<dyn StopRule>> = vec![Box::new(Budget(9)), Box::new((Budget(4), Budget(6)))];
    assert_eq!([rules.blind(0), rules.blind(2), rules.blind(3), rules.blind(8)], [3, 1, 0, 0]);
    assert_eq!((Budget(9), Budget(9), Tolerance::default()).blind(0), 0);
    Ok(())
}

/// A leap counts what it costs, and a shape that cannot go on is refused where it appears.
#[test]
fn leaps_are_counted_and_checked() -> Result<()> {
    let z0 = Tensor::ones(3, DType::F64, &Device::Cpu)?;
    let calls = AtomicUsize::new(0);
    let f = |z: &Tensor| -> Result<Tensor> {
        match calls.fetch_add(1, Ordering::Relaxed) {
            1 => Ok(z.narrow(0, 0, 2)?),
            _ => Ok((z * 0.5)?),
        }
    };
    let error = solve(&Picard::default(), &f, z0.clone(), &mut Budget(4)).unwrap_err().to_string();
    assert!(error.contains("[3]") && error.contains("[2]"), "{error}");
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    let found = solve(&Picard::default(), &f, z0, &mut Budget(4))?;
    assert_eq!((found.iters, found.applications, calls.load(Ordering::Relaxed)), (4, 4, 6));
    Ok(())
}
