use candle_core::Tensor;
use fpdm_core::{Denoiser, Error, Posterior, Prediction, Result};

use super::{StepRule, Stepped};
use crate::{Noise, Plan, Step};

/// The variance of a [`Ddpm`] step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variance {
    /// The posterior's, for certain data.
    #[default]
    Small,
    /// `β`, for data that are noise themselves.
    Large,
    /// Between the two, in logarithms, as the network says.
    Learned,
}

/// A draw from the posterior `q(x' | x, x0)` with the predicted `x0`. The last step, to the clean latent, draws nothing.
///
/// # Reference
///
/// Ho, Jain and Abbeel 2020, arXiv 2006.11239, Algorithm 2; learned variances: Nichol and Dhariwal 2021,
/// arXiv 2102.09672, equation 15.
///
/// # Cost
///
/// One solve a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ddpm {
    /// Which variance.
    pub variance: Variance,
}

impl Ddpm {
    /// The standard deviation: a number, or `(B, C, H, W)` where it is learned.
    fn deviation(&self, q: &Posterior, p: &Prediction) -> Result<Deviation> {
        Ok(match (self.variance, &p.log_var) {
            (Variance::Small, _) => Deviation::Same(q.variance.sqrt()),
            (Variance::Large, _) => Deviation::Same(q.beta.sqrt()),
            (Variance::Learned, Some(raw)) => {
                let (least, most) = (q.log_variance, q.beta.ln());
                // From [-1, 1] to between the two logarithms, halved for a deviation.
                Deviation::Each(raw.affine((most - least) / 4., (most + least) / 4.)?.exp()?)
            }
            (Variance::Learned, None) => {
                let why = "learned, but the network has no variance; use small, or weights with `learn_sigma`";
                return Err(Error::config("variance", why));
            }
        })
    }
}

enum Deviation {
    Same(f64),
    Each(Tensor),
}

impl StepRule for Ddpm {
    fn step(&mut self, d: &mut dyn Denoiser, x: &Tensor, step: &Step, noise: &mut dyn Noise) -> Result<Stepped> {
        let p = d.denoise(x, step.from)?;
        let q = Posterior::between(step.from, step.to)?;
        let mean = ((&p.x0 * q.mean_x0)? + (x * q.mean_xt)?)?;
        if step.to.sigma == 0. {
            return Ok(Stepped { x: mean, x0: p.x0 });
        }
        let noise = noise.like(x)?;
        let noise = match self.deviation(&q, &p)? {
            Deviation::Same(s) => (noise * s)?,
            Deviation::Each(s) => (noise * s)?,
        };
        Ok(Stepped { x: (mean + noise)?, x0: p.x0 })
    }

    fn check(&self, plan: &Plan) -> Result<()> {
        plan.steps().iter().try_for_each(|s| Posterior::between(s.from, s.to).map(|_| ()))
    }
}
