//! Gradient estimators against closed forms, against each other, and against finite differences.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use fpdm_core::dit::{Config, Fpdit, Labels, Size, init, perturb_gates};
use fpdm_core::rng::{Stream, normal, stream};
use fpdm_core::{Anderson, Broyden, FixedPointMap, ImplicitModel, Picard, Problem, Result, Solver};
use fpdm_train::{Effort, GradientEstimator, Implicit, Jfb, Memory, MultiStepJfb, Phantom, StochasticJfb, Unrolled};

const CPU: Device = Device::Cpu;
const A: f64 = 0.7;

/// z ↦ a·z + b.
fn affine() -> Result<(Var, Var, Problem)> {
    let (a, b) = (Var::new(&[[A]], &CPU)?, Var::new(&[[0.3f64]], &CPU)?);
    let (ta, tb) = (a.as_tensor().clone(), b.as_tensor().clone());
    let map = move |z: &Tensor| -> Result<Tensor> { Ok(((z * &ta)? + &tb)?) };
    let z0 = Tensor::new(&[[0.1f64]], &CPU)?;
    Ok((a, b, Problem::new(Arc::new(map), z0, |z| Ok(z.clone()))))
}

/// `(z, dz/da, dz/db)`.
fn gradients(estimator: &dyn GradientEstimator) -> Result<(f64, f64, f64)> {
    let (a, b, problem) = affine()?;
    let found = estimator.estimate(&problem, &mut stream(1, Stream::Solver, 0))?;
    assert!(!found.solution().track_op());
    let (mut da, mut db) = (0., 0.);
    found.pullback_solution(&Tensor::ones((1, 1), DType::F64, &CPU)?, &mut |mut grads| {
        for (var, sum) in [(&a, &mut da), (&b, &mut db)] {
            *sum += grads.remove(var).map_or(Ok(0.), |g| g.flatten_all()?.get(0)?.to_scalar::<f64>())?;
        }
        Ok(())
    })?;
    Ok((found.solution().flatten_all()?.get(0)?.to_scalar()?, da, db))
}

fn close(got: f64, want: f64) {
    assert!((got - want).abs() < 1e-9, "{got} is not {want}");
}

fn power_sum(a: f64, m: usize) -> f64 {
    (0..m).map(|j| a.powi(j as i32)).sum()
}

#[test]
fn jacobian_free_gradients_are_truncated_neumann_series() -> Result<()> {
    for memory in [Memory::Store, Memory::Recompute(1), Memory::Recompute(2), Memory::Recompute(9)] {
        for (n, m) in [(0, 1), (0, 4), (5, 3), (2, 7)] {
            let fixed = StochasticJfb { without_grad: n..=n, with_grad: m..=m, memory, ..Default::default() };
            let (z, da, db) = gradients(&fixed)?;
            let at = |k: usize| A.powi(k as i32) * 0.1 + 0.3 * power_sum(A, k);
            close(z, at(n + m));
            close(db, power_sum(A, m));
            close(da, (0..m).map(|j| A.powi(j as i32) * at(n + m - 1 - j)).sum());
            let same = MultiStepJfb { without_grad: n, with_grad: m, memory, ..Default::default() };
            assert_eq!(gradients(&same)?, (z, da, db));
        }
    }
    close(gradients(&Jfb { without_grad: 9, ..Default::default() })?.2, 1.);
    Ok(())
}

#[test]
fn phantom_gradients_follow_their_formula() -> Result<()> {
    for memory in [Memory::Store, Memory::Recompute(2)] {
        for (k, damp) in [(1, 0.), (5, 0.5), (4, 0.2)] {
            let phantom = Phantom { with_grad: k, damp, memory, ..Default::default() };
            let lambda = 1. - damp;
            close(gradients(&phantom)?.2, lambda * power_sum(1. - lambda + lambda * A, k));
        }
    }
    Ok(())
}

#[test]
fn implicit_gradients_are_exact_with_any_solver() -> Result<()> {
    let solvers: [Arc<dyn Solver>; 3] =
        [Arc::new(Picard::default()), Arc::new(Anderson::default()), Arc::new(Broyden::default())];
    for forward in &solvers {
        for adjoint in &solvers {
            let effort = |solver: &Arc<dyn Solver>| Effort { solver: solver.clone(), budget: 200, rel: 1e-13 };
            let (z, da, db) = gradients(&Implicit { forward: effort(forward), adjoint: effort(adjoint) })?;
            close(z, 1.);
            close(db, 1. / (1. - A));
            close(da, z / (1. - A));
        }
    }
    Ok(())
}

#[test]
fn unrolled_plain_iteration_is_sjfb_from_the_start() -> Result<()> {
    for k in [1, 3, 8] {
        let unrolled = gradients(&Unrolled { iterations: k, ..Default::default() })?;
        let sjfb = MultiStepJfb { without_grad: 0, with_grad: k, ..Default::default() };
        assert_eq!(unrolled, gradients(&sjfb)?);
    }
    // A damped iteration differentiates its damping: z₁ = ½z₀ + ½(a·z₀ + b).
    let damped = Unrolled { iterations: 1, solver: Arc::new(Picard { damp: 0.5 }) };
    close(gradients(&damped)?.2, 0.5);
    Ok(())
}

#[test]
fn draws_are_uniform_inclusive_and_seeded() -> Result<()> {
    let sjfb = StochasticJfb { without_grad: 0..=3, with_grad: 1..=4, ..Default::default() };
    let mut counts = [[0; 4]; 2];
    for step in 0..4000 {
        let (n, m) = sjfb.draw(&mut stream(3, Stream::Solver, step))?;
        assert_eq!((n, m), sjfb.draw(&mut stream(3, Stream::Solver, step))?);
        counts[0][n] += 1;
        counts[1][m - 1] += 1;
    }
    assert!(counts.iter().flatten().all(|c| (850..1150).contains(c)), "{counts:?}");
    Ok(())
}

#[test]
fn settings_without_sense_are_refused() {
    let refused = |estimator: &dyn GradientEstimator, word: &str| {
        let error = gradients(estimator).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    };
    refused(&StochasticJfb { with_grad: 0..=3, ..Default::default() }, "with_grad");
    #[allow(clippy::reversed_empty_ranges)]
    refused(&StochasticJfb { without_grad: 3..=2, ..Default::default() }, "without_grad");
    refused(&MultiStepJfb { memory: Memory::Recompute(0), ..Default::default() }, "memory");
    refused(&Phantom { damp: 1., ..Default::default() }, "damp");
    refused(&Phantom { with_grad: 0, ..Default::default() }, "with_grad");
    refused(&Unrolled { iterations: 0, ..Default::default() }, "iterations");
    refused(&Implicit { adjoint: Effort { budget: 0, ..Default::default() }, ..Default::default() }, "adjoint");
}

/// A small network with open gates, its weights and its inputs.
fn network(dtype: DType) -> Result<(VarMap, Fpdit, [Tensor; 3])> {
    let config = Config {
        input_size: [4, 4],
        hidden_size: 16,
        num_heads: 2,
        labels: Labels::Classes(3),
        ..Config::fpdm(Size::S, 2)
    };
    let weights = init(&config, 1, dtype, &CPU)?;
    perturb_gates(&config, &weights, 2, 0.1)?;
    let model = Fpdit::new(&config, VarBuilder::from_varmap(&weights, dtype, &CPU))?;
    let x = normal((2, 4, 4, 4), &mut stream(3, Stream::Noise, 0), dtype, &CPU)?;
    Ok((weights, model, [x, Tensor::new(&[700f32, 20.], &CPU)?, Tensor::new(&[1u32, 3], &CPU)?]))
}

/// Every weight's gradient of the mean square of the readout at every iterate, in sorted order.
fn network_gradients(estimator: &dyn GradientEstimator, dtype: DType) -> Result<Vec<(String, Tensor)>> {
    let (weights, model, [x, t, y]) = network(dtype)?;
    let problem = model.prepare(&x, &t, &y)?;
    let found = estimator.estimate(&problem, &mut stream(0, Stream::Solver, 0))?;
    let points = found.iterates.iter().map(Var::from_tensor).collect::<candle_core::Result<Vec<_>>>()?;
    let mut loss = Tensor::zeros((), dtype, &CPU)?;
    for point in &points {
        loss = (loss + problem.readout(point)?.sqr()?.mean_all()?)?;
    }
    let mut vars: Vec<_> = weights.data().lock().unwrap().iter().map(|(n, v)| (n.clone(), v.clone())).collect();
    vars.sort_by(|a, b| a.0.cmp(&b.0));
    let mut sums: Vec<Tensor> = vars.iter().map(|(_, v)| v.zeros_like()).collect::<candle_core::Result<_>>()?;
    let mut add = |mut grads: candle_core::backprop::GradStore| -> Result<()> {
        for ((_, var), sum) in vars.iter().zip(&mut sums) {
            if let Some(grad) = grads.remove(var) {
                *sum = (&*sum + grad.detach())?;
            }
        }
        Ok(())
    };
    let mut grads = loss.backward()?;
    let cotangents: Vec<_> = points.iter().map(|p| grads.remove(p).map(|g| g.detach())).collect();
    add(grads)?;
    found.pullback(&cotangents, &mut add)?;
    Ok(vars.iter().map(|(n, _)| n.clone()).zip(sums).collect())
}

fn norm(t: &Tensor) -> Result<f64> {
    Ok(t.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt())
}

#[test]
fn iterations_without_gradient_build_no_graph() -> Result<()> {
    let (_weights, model, [x, t, y]) = network(DType::F64)?;
    let solvers: [Arc<dyn Solver>; 2] = [Arc::new(Picard::default()), Arc::new(Anderson::default())];
    for solver in solvers {
        let (n, m) = (5, 3);
        let (effort, memory) = (Effort { solver: solver.clone(), budget: n, rel: 0. }, Memory::Store);
        let estimators: [(&str, Box<dyn GradientEstimator>, usize, usize); 4] = [
            ("jfb", Box::new(Jfb { without_grad: n, solver: solver.clone() }), n, 1),
            ("steps", Box::new(MultiStepJfb { without_grad: n, with_grad: m, solver: solver.clone(), memory }), n, m),
            ("phantom", Box::new(Phantom { without_grad: n, with_grad: m, damp: 0.5, solver, memory }), n, m),
            ("implicit", Box::new(Implicit { forward: effort.clone(), adjoint: effort }), n, 1),
        ];
        for (name, estimator, without, with) in estimators {
            let Problem { map, frozen, z0, .. } = model.prepare(&x, &t, &y)?;
            // Applications whose image has a graph, and those whose image has none.
            let counts: Arc<[AtomicUsize; 2]> = Arc::default();
            let watch = |map: Arc<dyn FixedPointMap>| -> Arc<dyn FixedPointMap> {
                let counts = counts.clone();
                Arc::new(move |z: &Tensor| -> Result<Tensor> {
                    let image = map.apply(z)?;
                    counts[usize::from(image.track_op())].fetch_add(1, Ordering::Relaxed);
                    Ok(image)
                })
            };
            let problem = Problem::new(watch(map), z0, |z| Ok(z.clone())).with_frozen(watch(frozen));
            estimator.estimate(&problem, &mut stream(0, Stream::Solver, 0))?;
            let [plain, tracked] = [0, 1].map(|i| counts[i].load(Ordering::Relaxed));
            assert_eq!((plain, tracked), (without, with), "{name}");
        }
    }
    Ok(())
}

#[test]
fn recomputing_gives_the_stored_gradients() -> Result<()> {
    let with = |memory| MultiStepJfb { without_grad: 2, with_grad: 5, memory, ..Default::default() };
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-6)] {
        let stored = network_gradients(&with(Memory::Store), dtype)?;
        for segment in [1, 2, 5] {
            for ((name, a), (_, b)) in stored.iter().zip(network_gradients(&with(Memory::Recompute(segment)), dtype)?) {
                let (difference, size) = (norm(&(a - b)?)?, norm(a)?);
                assert!(size > 0., "{name} has no gradient");
                assert!(difference <= tolerance * size, "{name}: {difference:e} of {size:e}");
            }
        }
    }
    Ok(())
}

#[test]
fn the_exact_gradient_is_what_long_estimates_tend_to() -> Result<()> {
    let effort = Effort { solver: Arc::new(Anderson::default()), budget: 120, rel: 1e-12 };
    let (a, b, problem) = affine()?;
    drop((a, b, problem));
    let exact = gradients(&Implicit { forward: effort.clone(), adjoint: effort })?;
    let long = gradients(&MultiStepJfb { without_grad: 0, with_grad: 120, ..Default::default() })?;
    close(exact.1, long.1);
    close(exact.2, long.2);
    Ok(())
}
