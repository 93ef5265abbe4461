//! A fixed point diffusion model with closed forms: Gaussian data, and an implicit layer that relaxes at a known rate.
//!
//! For `x0 ~ N(mu, s²)` and `x = alpha·x0 + sigma·eps` the best guess of the noise is linear in `x`:
//! `eps* = sigma·(x − alpha·mu) / (alpha²·s² + sigma²)`. The layer is `f(z) = a·z + (1 − a)·eps*`, so that `n`
//! applications leave `aⁿ` of the error that the solve began with.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use fpdm_core::rng::{self, Stream};
use fpdm_core::{
    Anderson, Broyden, Budget, Flow, ImplicitModel, Level, NoiseSchedule, Parameterization, Picard, Problem, Result,
    Solver, Tolerance, Vp, diffuse, solve,
};

const MU: f64 = 0.7;
const S: f64 = 0.4;

struct Toy<N> {
    schedule: N,
    /// The rate at which the implicit layer relaxes.
    a: f64,
}

fn best_eps(x: &Tensor, level: Level) -> Result<Tensor> {
    let gain = level.sigma / (level.alpha.powi(2) * S * S + level.sigma.powi(2));
    Ok(x.affine(gain, -gain * level.alpha * MU)?)
}

impl<N: NoiseSchedule> ImplicitModel for Toy<N> {
    fn prepare(&self, x: &Tensor, t: &Tensor, _: &Tensor) -> Result<Problem> {
        let (b, c, h, w) = x.dims4()?;
        let tokens = |x: Tensor| x.reshape((b, c, h * w))?.transpose(1, 2)?.contiguous();
        let eps = t
            .to_vec1::<f64>()?
            .into_iter()
            .enumerate()
            .map(|(i, t)| best_eps(&x.narrow(0, i, 1)?, self.schedule.level(t)?));
        let target = tokens(Tensor::cat(&eps.collect::<Result<Vec<_>>>()?, 0)?)?; // (B, H·W, C)
        let z0 = tokens(x.clone())?;
        let a = self.a;
        let map = move |z: &Tensor| -> Result<Tensor> { Ok(((z * a)? + (&target * (1. - a))?)?) };
        Ok(Problem::new(Arc::new(map), z0, move |z| Ok(z.transpose(1, 2)?.reshape((b, c, h, w))?)))
    }
}

fn noise(stream: Stream) -> Result<Tensor> {
    rng::normal_batch(11, stream, &[0, 1, 2], (2, 4, 4), DType::F64, &Device::Cpu)
}

fn largest(t: Tensor) -> Result<f64> {
    Ok(t.abs()?.max_all()?.to_scalar()?)
}

fn levels(schedule: &dyn NoiseSchedule, times: [f64; 3]) -> Result<Vec<Level>> {
    times.into_iter().map(|t| schedule.level(t)).collect()
}

/// `n` applications leave `aⁿ` of the error, on every sample at its own time, after the readout too.
#[test]
fn the_error_of_a_solve_is_a_to_the_n() -> Result<()> {
    let times = [1., 400., 999.];
    for a in [0.5, 0.9] {
        let toy = Toy { schedule: Vp::default().zero_terminal_snr()?, a };
        let levels = levels(&toy.schedule, times)?;
        let x = diffuse(&levels, &(noise(Stream::Data)? * S)?.affine(1., MU)?, &noise(Stream::Noise)?)?;
        let t = Tensor::new(&times, &Device::Cpu)?;
        let problem = toy.prepare(&x, &t, &t)?;
        let exact: Vec<Tensor> =
            levels.iter().enumerate().map(|(i, &l)| best_eps(&x.narrow(0, i, 1)?, l)).collect::<Result<_>>()?;
        let exact = Tensor::cat(&exact, 0)?;
        let error = |n: usize| -> Result<Tensor> {
            let z = solve(&Picard::default(), &*problem.frozen, problem.z0.clone(), &mut Budget(n))?.z;
            Ok((problem.readout(&z)? - &exact)?)
        };
        let start = error(0)?;
        assert!(largest(start.clone())? > 0.1);
        for n in 1..20 {
            assert!(largest((error(n)? - (&start * a.powi(n as i32))?)?)? < 1e-13, "a = {a}, n = {n}");
        }
    }
    Ok(())
}

/// Starting where a neighbouring solve ended leaves `aⁿ` of the distance between the two solutions: why reuse pays.
#[test]
fn reuse_starts_from_the_distance_between_solutions() -> Result<()> {
    let toy = Toy { schedule: Flow::default(), a: 0.8 };
    let x = noise(Stream::Noise)?;
    let problem = |t: f64| {
        let t = Tensor::new(&[t, t, t], &Device::Cpu)?;
        toy.prepare(&x, &t, &t)
    };
    let exact = |t: f64| -> Result<Tensor> { best_eps(&problem(t)?.z0, toy.schedule.level(t)?) };
    let (before, now) = (exact(520.)?, exact(500.)?);
    let found = solve(&Picard::default(), &*problem(500.)?.frozen, before.clone(), &mut Budget(5))?.z;
    assert!(largest(((found - &now)? - ((&before - &now)? * 0.8f64.powi(5))?)?)? < 1e-13);
    assert!(largest((before - &now)?)? < 0.1 * largest((problem(500.)?.z0 - now)?)?);
    Ok(())
}

/// Solved to the end, every solver and every parameterisation says `E[x0 | x]`.
#[test]
fn the_answer_is_the_posterior_mean() -> Result<()> {
    let times = [100., 500., 900.];
    let vp = Toy { schedule: Vp::default(), a: 0.95 };
    let levels = levels(&vp.schedule, times)?;
    let x = diffuse(&levels, &(noise(Stream::Data)? * S)?.affine(1., MU)?, &noise(Stream::Noise)?)?;
    let t = Tensor::new(&times, &Device::Cpu)?;
    let problem = vp.prepare(&x, &t, &t)?;
    let mean: Vec<Tensor> = levels
        .iter()
        .enumerate()
        .map(|(i, l)| {
            let gain = l.alpha * S * S / (l.alpha.powi(2) * S * S + l.sigma.powi(2));
            Ok(x.narrow(0, i, 1)?.affine(gain, MU - gain * l.alpha * MU)?)
        })
        .collect::<Result<_>>()?;
    let mean = Tensor::cat(&mean, 0)?;
    let solvers: [Box<dyn Solver>; 3] =
        [Box::new(Picard::default()), Box::new(Anderson::default()), Box::new(Broyden::default())];
    for solver in &solvers {
        let mut stop = (Budget(1000), Tolerance { abs: 0., rel: 1e-12, every: 1 });
        let z = solve(&**solver, &*problem.frozen, problem.z0.clone(), &mut stop)?.z;
        let (x0, eps) = Parameterization::Eps.split(&levels, &x, &problem.readout(&z)?)?;
        assert!(largest((&x0 - &mean)?)? < 1e-8);
        for p in [Parameterization::X0, Parameterization::V, Parameterization::Flow] {
            let (again, _) = p.split(&levels, &x, &p.target(&levels, &x0, &eps)?)?;
            assert!(largest((again - &x0)?)? < 1e-10, "{p}");
        }
    }
    Ok(())
}

/// For `z ↦ a·z + b`, `n` free and then `m` tracked applications give `dz/db = Σ_{j<m} aʲ` exactly, whatever `n`.
#[test]
fn tracked_steps_sum_a_geometric_series() -> Result<()> {
    for a in [0.5, 0.9, -0.3] {
        for (n, m) in [(0, 1), (3, 1), (2, 4), (10, 12)] {
            let b = Var::from_tensor(&noise(Stream::Init)?)?;
            let bias = b.as_tensor().clone();
            let map = move |z: &Tensor| -> Result<Tensor> { Ok(((z * a)? + &bias)?) };
            let problem = Problem::new(Arc::new(map), noise(Stream::Noise)?, |z| Ok(z.clone()));
            let free = solve(&Picard::default(), &*problem.frozen, problem.z0.clone(), &mut Budget(n))?.z;
            assert!(!free.track_op(), "the frozen map leaves no graph");
            let z = solve(&Picard::default(), &*problem.map, free.detach(), &mut Budget(m as usize))?.z;
            let grads = problem.readout(&z)?.sum_all()?.backward()?;
            let got = grads.get(&b).expect("b has a gradient").detach();
            let want: f64 = (0..m).map(|j| a.powi(j)).sum();
            assert!(largest((got - want)?)? < 1e-14, "a = {a}, n = {n}, m = {m}");
        }
    }
    Ok(())
}
