use candle_core::Tensor;
use fpdm_core::{Denoiser, Error, Level, Posterior, Result};

use super::{StepRule, Stepped, carry};
use crate::{Noise, Plan, Step};

/// `x' = alpha'·x0 + √(sigma'² − s²)·eps + s·noise` with `s = eta·√variance` of the posterior.
///
/// `eta = 0` is deterministic and works on every path; `eta = 1` has the posterior's noise and needs a
/// variance-preserving schedule.
///
/// # Reference
///
/// Song, Meng and Ermon 2020, arXiv 2010.02502, equations 12 and 16.
///
/// # Cost
///
/// One solve a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ddim {
    /// The share of the posterior's noise, in [0, 1].
    pub eta: f64,
}

impl StepRule for Ddim {
    fn step(&mut self, d: &mut dyn Denoiser, x: &Tensor, step: &Step, noise: &mut dyn Noise) -> Result<Stepped> {
        let p = d.denoise(x, step.from)?;
        if self.eta == 0. || step.to.sigma == 0. {
            return Ok(Stepped { x: carry(&p, step.to)?, x0: p.x0 });
        }
        let variance = self.eta.powi(2) * Posterior::between(step.from, step.to)?.variance;
        let sigma = (step.to.sigma.powi(2) - variance).max(0.).sqrt();
        let mean = carry(&p, Level { sigma, ..step.to })?;
        Ok(Stepped { x: (mean + (noise.like(x)? * variance.sqrt())?)?, x0: p.x0 })
    }

    fn check(&self, plan: &Plan) -> Result<()> {
        if !(0. ..=1.).contains(&self.eta) {
            return Err(Error::config("eta", format!("{} is outside [0, 1]; 0 is deterministic", self.eta)));
        }
        match self.eta {
            0. => Ok(()),
            _ => plan.steps().iter().try_for_each(|s| Posterior::between(s.from, s.to).map(|_| ())),
        }
    }
}
