//! How one noise level becomes the next.

mod ddim;
mod ddpm;
mod dpm_solver;
mod euler;
mod flow_heun;
mod heun;
mod unipc;

use candle_core::Tensor;
use fpdm_core::{Denoiser, Level, Prediction, Result};

pub use self::ddim::Ddim;
pub use self::ddpm::{Ddpm, Variance};
pub use self::dpm_solver::DpmSolver;
pub use self::euler::Euler;
pub use self::flow_heun::FlowHeun;
pub use self::heun::Heun;
pub use self::unipc::UniPc;
use crate::{Noise, Plan, Step};

/// What a step leaves.
#[derive(Clone, Debug)]
pub struct Stepped {
    /// The latent at the end of the step.
    pub x: Tensor,
    /// The clean latent as the denoiser saw it at the start.
    pub x0: Tensor,
}

/// One step of a sampler.
///
/// A rule with memory serves one trajectory at a time, and forgets where [`Step::index`] is 0.
///
/// ```
/// use candle_core::Tensor;
/// use fpdm_core::{Denoiser, Result, diffuse};
/// use fpdm_sample::{Noise, Step, StepRule, Stepped};
///
/// /// Predicts, and adds all the noise anew.
/// struct Renoise;
/// impl StepRule for Renoise {
///     fn step(&mut self, d: &mut dyn Denoiser, x: &Tensor, s: &Step, noise: &mut dyn Noise) -> Result<Stepped> {
///         let x0 = d.denoise(x, s.from)?.x0;
///         Ok(Stepped { x: diffuse(&[s.to], &x0, &noise.like(x)?)?, x0 })
///     }
/// }
/// ```
pub trait StepRule {
    /// From the latent `x` `(B, C, H, W)` at `step.from` to the one at `step.to`.
    fn step(&mut self, d: &mut dyn Denoiser, x: &Tensor, step: &Step, noise: &mut dyn Noise) -> Result<Stepped>;

    /// The levels at which the denoiser is asked, in order: a budget is divided among these.
    fn evaluations(&self, step: &Step) -> Vec<Level> {
        vec![step.from]
    }

    /// Refuses settings out of range and plans that it cannot follow, before any work.
    fn check(&self, _plan: &Plan) -> Result<()> {
        Ok(())
    }
}

impl<R: StepRule + ?Sized> StepRule for Box<R> {
    fn step(&mut self, d: &mut dyn Denoiser, x: &Tensor, step: &Step, noise: &mut dyn Noise) -> Result<Stepped> {
        (**self).step(d, x, step, noise)
    }

    fn evaluations(&self, step: &Step) -> Vec<Level> {
        (**self).evaluations(step)
    }

    fn check(&self, plan: &Plan) -> Result<()> {
        (**self).check(plan)
    }
}

/// `alpha·x0 + sigma·eps` at another level: the exact step if both stay what they are.
fn carry(p: &Prediction, to: Level) -> Result<Tensor> {
    fpdm_core::diffuse(&[to], &p.x0, &p.eps)
}

/// Half the logarithm of the signal-to-noise ratio: −∞ for pure noise, ∞ without.
fn log_snr(level: Level) -> f64 {
    (level.alpha / level.sigma).ln()
}

/// Both evaluations of a two-stage step, or the only one where it ends without noise: no network is asked there.
fn two_stages(step: &Step) -> Vec<Level> {
    if step.to.sigma == 0. { vec![step.from] } else { vec![step.from, step.to] }
}
