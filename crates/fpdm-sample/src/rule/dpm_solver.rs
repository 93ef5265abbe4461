use candle_core::Tensor;
use fpdm_core::{Denoiser, Level, Result};

use super::{StepRule, Stepped, carry, log_snr};
use crate::{Noise, Step};

/// DPM-Solver++(2M): the second-order step of the data prediction, from this and the last `x0`.
///
/// With `λ = ln(alpha/sigma)`, `h = λ' − λ` and `r` the last `h` over this:
/// `x' = (sigma'/sigma)·x − alpha'·(e^{−h} − 1)·(x0 + (x0 − x0_last)/(2r))`. The first and the last step, and one after pure
/// noise, are of first order.
///
/// # Reference
///
/// Lu et al. 2022, arXiv 2211.01095, Algorithm 2.
///
/// # Cost
///
/// One solve a step, and one latent of memory.
#[derive(Clone, Debug, Default)]
pub struct DpmSolver {
    last: Option<(Level, Tensor)>,
}

impl StepRule for DpmSolver {
    fn step(&mut self, d: &mut dyn Denoiser, x: &Tensor, step: &Step, _: &mut dyn Noise) -> Result<Stepped> {
        if step.index == 0 {
            self.last = None;
        }
        let p = d.denoise(x, step.from)?;
        let last = self.last.replace((step.from, p.x0.clone()));
        let mut next = carry(&p, step.to)?;
        if let (Some((before, x0)), false) = (last, step.is_last()) {
            let h = log_snr(step.to) - log_snr(step.from);
            let r = (log_snr(step.from) - log_snr(before)) / h;
            // Infinite after pure noise, infinitely far away.
            if r.is_finite() && r != 0. {
                next = (next + ((&p.x0 - x0)? * (-step.to.alpha * (-h).exp_m1() / (2. * r)))?)?;
            }
        }
        Ok(Stepped { x: next, x0: p.x0 })
    }
}
