//! One of each, added from outside through the public API alone.

use candle_core::{DType, Device, Tensor};
use fpdm_core::{
    Budget, Error, FixedPointMap, Flow, Iterate, Iterates, LatentCodec, Level, Moments, NoiseSchedule, Problem, Result,
    Solution, Solver, StopReason, StopRule, Tolerance, iterates, solve,
};

/// A map with state of its own: `z ↦ √(z + c)`, solved by `(1 + √(1 + 4c)) / 2`.
struct Root {
    c: Tensor,
}

impl FixedPointMap for Root {
    fn apply(&self, z: &Tensor) -> Result<Tensor> {
        Ok((z + &self.c)?.sqrt()?)
    }
}

/// A solver from an update rule: heavy ball, `z + (f(z) − z) + momentum·(z − z_before)`.
struct HeavyBall {
    momentum: f64,
}

impl Solver for HeavyBall {
    fn iterate<'a>(&'a self, f: &'a dyn FixedPointMap, z0: Tensor) -> Iterates<'a> {
        let mut before = z0.clone();
        iterates(f, z0, move |z, fz| {
            let travelled = (z - std::mem::replace(&mut before, z.clone()))?;
            Ok((fz + (travelled * self.momentum)?)?)
        })
    }
}

/// A solver written out by hand, which has only so many iterates.
struct Twice;

impl Solver for Twice {
    fn iterate<'a>(&'a self, f: &'a dyn FixedPointMap, z0: Tensor) -> Iterates<'a> {
        let mut z = z0;
        Box::new((0..2).map(move |_| {
            let fz = f.apply(&z)?;
            let it = Iterate { z: z.clone(), next: fz.clone(), fz };
            z = it.next.clone();
            Ok(it)
        }))
    }
}

/// A rule with an error of its own: stops when a step has become small, refuses to see negative points.
struct SmallStep {
    below: f64,
}

impl StopRule for SmallStep {
    fn check(&mut self, _: usize, it: &Iterate) -> Result<Option<StopReason>> {
        if it.z.min_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()? < 0. {
            return Err(Error::other("a negative point"));
        }
        let step = (&it.next - &it.z)?.abs()?.max_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        Ok((step < self.below).then_some(StopReason::Converged))
    }
}

/// Latents that are pixels averaged over 2×2.
struct Blocks;

impl LatentCodec for Blocks {
    fn encode(&self, pixels: &Tensor) -> Result<Moments> {
        let mean = pixels.avg_pool2d(2)?;
        Ok(Moments { std: mean.zeros_like()?, mean })
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let (_, _, h, w) = latents.dims4()?;
        Ok(latents.upsample_nearest2d(2 * h, 2 * w)?)
    }
}

/// A schedule that is neither of the two.
struct Trigonometric;

impl NoiseSchedule for Trigonometric {
    fn level(&self, t: f64) -> Result<Level> {
        let (sigma, alpha) = (t * std::f64::consts::FRAC_PI_2).sin_cos();
        Ok(Level { t, alpha, sigma })
    }

    fn span(&self) -> (f64, f64) {
        (0., 1.)
    }
}

fn run(solver: &dyn Solver, stop: &mut dyn StopRule) -> Result<Solution> {
    let c = Tensor::new(&[[1f64, 2.], [6., 12.]], &Device::Cpu)?;
    solve(solver, &Root { c }, Tensor::ones((2, 2), DType::F64, &Device::Cpu)?, stop)
}

#[test]
fn a_foreign_map_solver_and_rule_work_together() -> Result<()> {
    let golden = (1. + 5f64.sqrt()) / 2.;
    let found = run(&HeavyBall { momentum: 0.1 }, &mut (Budget(200), SmallStep { below: 1e-12 }))?;
    assert_eq!((found.reason, found.iters), (StopReason::Converged, found.applications));
    for (got, want) in found.z.flatten_all()?.to_vec1::<f64>()?.iter().zip([golden, 2., 3., 4.]) {
        assert!((got - want).abs() < 1e-10, "{got}, not {want}");
    }
    let found = run(&Twice, &mut Tolerance { rel: 0., ..Default::default() })?;
    assert_eq!((found.reason, found.applications), (StopReason::Exhausted, 2));
    Ok(())
}

#[test]
fn a_foreign_error_arrives() {
    let below = |z: &Tensor| -> Result<Tensor> { Ok((z - 1.)?) };
    let z0 = Tensor::zeros(1, DType::F64, &Device::Cpu).unwrap();
    let error = solve(&Twice, &below, z0, &mut SmallStep { below: 0. }).expect_err("negative");
    assert_eq!(error.to_string(), "a negative point");
}

#[test]
fn a_foreign_codec_and_schedule_are_objects() -> Result<()> {
    let codec: Box<dyn LatentCodec> = Box::new(Blocks);
    let pixels = Tensor::arange(0f32, 48., &Device::Cpu)?.reshape((1, 3, 4, 4))?;
    let moments = codec.encode(&pixels)?;
    let latents = moments.at(&moments.mean.ones_like()?)?;
    let again = codec.encode(&codec.decode(&latents)?)?.mean;
    assert_eq!(again.flatten_all()?.to_vec1::<f32>()?, latents.flatten_all()?.to_vec1::<f32>()?);
    let schedule: &dyn NoiseSchedule = &Trigonometric;
    assert!(schedule.level(0.25)?.snr() > schedule.level(0.5)?.snr());
    assert!(Flow::default().level(250.)?.snr() > 1.);
    Ok(())
}

/// Everything that a server or a data loader may want to hand to another thread.
#[test]
fn shared_things_can_be_shared() {
    fn shared<T: Send + Sync + ?Sized>() {}
    shared::<dyn Solver>();
    shared::<dyn FixedPointMap>();
    shared::<Problem>();
    shared::<Solution>();
    shared::<Error>();
}
