use super::Level;
use crate::{Error, Result};

/// The Gaussian `q(x_s | x_t, x0)` of a less noisy latent, given a noisier one and the clean one.
///
/// Its mean is `x0·mean_x0 + x_t·mean_xt`. With `ᾱ = alpha²` and `β = 1 − ᾱ_t/ᾱ_s`:
/// `variance = β·(1 − ᾱ_s)/(1 − ᾱ_t)`, `mean_x0 = β·√ᾱ_s/(1 − ᾱ_t)`, `mean_xt = (1 − ᾱ_s)·√(1 − β)/(1 − ᾱ_t)`.
///
/// # Reference
///
/// Ho, Jain and Abbeel 2020, arXiv 2006.11239, equations 6 and 7; learned variances lie between `log_variance` and
/// `ln beta`: Nichol and Dhariwal 2021, arXiv 2102.09672, equation 15.
///
/// ```
/// use fpdm_core::{Level, NoiseSchedule, Posterior, Vp};
///
/// let schedule = Vp::default();
/// let step = Posterior::between(schedule.level(500.)?, schedule.level(499.)?)?;
/// assert!((step.variance - schedule.posteriors()[500].variance).abs() < 1e-12);
/// let last = Posterior::between(schedule.level(0.)?, Level::CLEAN)?;
/// assert_eq!((last.variance, last.mean_xt), (0., 0.));
/// # fpdm_core::Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Posterior {
    /// `β`, the variance of the step from `s` to `t`.
    pub beta: f64,
    /// The variance of `x_s`.
    pub variance: f64,
    /// Its logarithm, −∞ where it is 0; in [`Vp::posteriors`](super::Vp::posteriors) step 0 has step 1's.
    pub log_variance: f64,
    /// The factor of `x0` in the mean.
    pub mean_x0: f64,
    /// The factor of `x_t` in the mean.
    pub mean_xt: f64,
}

impl Posterior {
    /// The posterior of a jump between two levels of a variance-preserving schedule, neighbours or not.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where `to` is not less noisy than `from`, or the two are not variance-preserving.
    pub fn between(from: Level, to: Level) -> Result<Self> {
        for level in [from, to] {
            let off = (level.alpha.powi(2) + level.sigma.powi(2) - 1.).abs();
            if off.is_nan() || off > 1e-6 {
                let why = format!("alpha² + sigma² is not 1 at {level:?}; a posterior needs a variance-preserving one");
                return Err(Error::config("schedule", why));
            }
        }
        if to.alpha <= from.alpha {
            return Err(Error::config("to", format!("{to:?} is not less noisy than {from:?}; go down in time")));
        }
        let (now, before) = (from.alpha.powi(2), to.alpha.powi(2));
        Ok(Self::new(1. - now / before, now, before))
    }

    pub(super) fn new(beta: f64, now: f64, before: f64) -> Self {
        let variance = beta * (1. - before) / (1. - now);
        Self {
            beta,
            variance,
            log_variance: variance.ln(),
            mean_x0: beta * before.sqrt() / (1. - now),
            mean_xt: (1. - before) * (1. - beta).sqrt() / (1. - now),
        }
    }
}
