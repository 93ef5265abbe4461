use candle_core::Tensor;
use fpdm_core::{Denoiser, Level, Result};

use super::{StepRule, Stepped, carry, two_stages};
use crate::{Noise, Step};

/// Heun's step of the probability flow in `x/alpha` over `sigma/alpha`, whose slope is `eps`: an Euler step, then the
/// same step with the mean of the slopes at its two ends.
///
/// From pure noise, where `sigma/alpha` is infinite, and to the clean latent it is Euler's step.
///
/// # Reference
///
/// Karras et al. 2022, arXiv 2206.00364, Algorithm 1.
///
/// # Cost
///
/// Two solves a step, one in the last and in one from pure noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heun;

impl StepRule for Heun {
    fn step(&mut self, d: &mut dyn Denoiser, x: &Tensor, step: &Step, _: &mut dyn Noise) -> Result<Stepped> {
        let first = d.denoise(x, step.from)?;
        let euler = carry(&first, step.to)?;
        if self.evaluations(step).len() == 1 {
            return Ok(Stepped { x: euler, x0: first.x0 });
        }
        let second = d.denoise(&euler, step.to)?;
        // x'/alpha' = x0 + (s + s')/2·eps + (s' − s)/2·eps', which is x/alpha + (s' − s)·mean with x/alpha = x0 + s·eps.
        let (s, end) = (step.from.sigma / step.from.alpha, step.to.sigma / step.to.alpha);
        let slopes = ((&first.eps * ((s + end) / 2.))? + (&second.eps * ((end - s) / 2.))?)?;
        Ok(Stepped { x: ((&first.x0 + slopes)? * step.to.alpha)?, x0: first.x0 })
    }

    fn evaluations(&self, step: &Step) -> Vec<Level> {
        if step.from.alpha == 0. { vec![step.from] } else { two_stages(step) }
    }
}
