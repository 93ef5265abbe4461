use candle_core::Tensor;
use fpdm_core::{Denoiser, Error, Level, Result};

use super::{StepRule, Stepped, carry, two_stages};
use crate::{Noise, Plan, Step};

/// Heun's step on the straight path, where `alpha + sigma = 1` and the slope is `eps − x0`: an Euler step, then the
/// same step with the mean of the slopes at its two ends. The last step, to the clean latent, is Euler's.
///
/// # Reference
///
/// Liu, Gong and Liu 2022, arXiv 2209.03003, section 2.2, with Heun's method for Euler's.
///
/// # Cost
///
/// Two solves a step, one in the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowHeun;

impl StepRule for FlowHeun {
    fn step(&mut self, d: &mut dyn Denoiser, x: &Tensor, step: &Step, _: &mut dyn Noise) -> Result<Stepped> {
        let first = d.denoise(x, step.from)?;
        let euler = carry(&first, step.to)?;
        if step.to.sigma == 0. {
            return Ok(Stepped { x: euler, x0: first.x0 });
        }
        let second = d.denoise(&euler, step.to)?;
        let slopes = ((&first.eps - &first.x0)? + (second.eps - second.x0)?)?;
        let x = (x + (slopes * ((step.to.sigma - step.from.sigma) / 2.))?)?;
        Ok(Stepped { x, x0: first.x0 })
    }

    fn evaluations(&self, step: &Step) -> Vec<Level> {
        two_stages(step)
    }

    fn check(&self, plan: &Plan) -> Result<()> {
        match plan.steps().iter().find(|s| (s.from.alpha + s.from.sigma - 1.).abs() > 1e-9) {
            None => Ok(()),
            Some(s) => {
                let why = format!("flow-heun needs the straight path, alpha + sigma = 1, not {:?}; use heun", s.from);
                Err(Error::config("sampler", why))
            }
        }
    }
}
