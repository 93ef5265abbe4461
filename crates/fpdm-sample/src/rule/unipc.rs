use candle_core::Tensor;
use fpdm_core::{Denoiser, Level, Result};

use super::{StepRule, Stepped, carry, log_snr};
use crate::{Noise, Step};

/// UniPC-2, the unified predictor-corrector of order 2 in data prediction with `B(h) = e^h − 1`: every prediction is
/// used twice, to correct the latent it was made at and to predict the next.
///
/// The first and the last step, and one after pure noise, are of first order.
///
/// # Reference
///
/// Zhao et al. 2023, arXiv 2302.04867, Algorithms 5 and 6; `B₂` of its section 3.1.
///
/// # Cost
///
/// One solve a step, and four latents of memory.
#[derive(Clone, Debug, Default)]
pub struct UniPc {
    last: Option<Past>,
    before: Option<(Level, Tensor)>,
}

/// The step before this one.
#[derive(Clone, Debug)]
struct Past {
    level: Level,
    /// Its first-order part: where it would have arrived with `x0` alone.
    euler: Tensor,
    x0: Tensor,
    second_order: bool,
}

impl UniPc {
    /// UniC: the latent `x` at `to`, corrected by the prediction `x0` that was made there.
    fn correct(&self, past: &Past, to: Level, x0: &Tensor) -> Result<Tensor> {
        let hh = log_snr(past.level) - log_snr(to); // −h
        let b = hh.exp_m1();
        let newest = (x0 - &past.x0)?;
        let sum = match (&self.before, past.second_order) {
            (Some((level, before)), true) => {
                let r = (log_snr(*level) - log_snr(past.level)) / -hh;
                // The solution of [[1, 1], [r, 1]]·rho = (b1, b2).
                let phi2 = b / hh - 1.;
                let phi3 = phi2 / hh - 0.5;
                let (b1, b2) = (phi2 / b, 2. * phi3 / b);
                let rho = (b1 - b2) / (1. - r);
                ((newest * (b1 - rho))? + ((before - &past.x0)? * (rho / r))?)?
            }
            _ => (newest * 0.5)?,
        };
        Ok((&past.euler - (sum * (to.alpha * b))?)?)
    }
}

impl StepRule for UniPc {
    fn step(&mut self, d: &mut dyn Denoiser, x: &Tensor, step: &Step, _: &mut dyn Noise) -> Result<Stepped> {
        if step.index == 0 {
            (self.last, self.before) = (None, None);
        }
        let p = d.denoise(x, step.from)?;
        let x = match &self.last {
            Some(past) => self.correct(past, step.from, &p.x0)?,
            None => x.clone(),
        };
        let euler = first_order(&x, &p.x0, step)?;
        let mut next = euler.clone();
        let mut second_order = false;
        self.before = self.last.take().map(|past| (past.level, past.x0));
        if let (Some((level, before)), false) = (&self.before, step.is_last()) {
            let h = log_snr(step.to) - log_snr(step.from);
            let r = (log_snr(*level) - log_snr(step.from)) / h;
            // Infinite after pure noise, infinitely far away.
            if r.is_finite() && r != 0. {
                let slope = ((before - &p.x0)? * (0.5 / r))?;
                next = (next - (slope * (step.to.alpha * (-h).exp_m1()))?)?;
                second_order = true;
            }
        }
        self.last = Some(Past { level: step.from, euler, x0: p.x0.clone(), second_order });
        Ok(Stepped { x: next, x0: p.x0 })
    }
}

/// `x' = (sigma'/sigma)·x − alpha'·(e^{−h} − 1)·x0`, which is `alpha'·x0 + sigma'·eps` with the `eps` left in `x`.
fn first_order(x: &Tensor, x0: &Tensor, step: &Step) -> Result<Tensor> {
    let (from, to) = (step.from, step.to);
    let left = ((x - (x0 * from.alpha)?)? * (1. / from.sigma))?;
    carry(&fpdm_core::Prediction { x0: x0.clone(), eps: left, log_var: None }, to)
}
