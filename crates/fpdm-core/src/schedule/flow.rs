use super::{Level, NoiseSchedule};
use crate::{Error, Result};

/// The straight path of rectified flow: `sigma = t / steps`, `alpha = 1 − sigma`.
///
/// Time runs over `[0, steps]` because the network is told times of that size; the published trainer draws
/// `t = 0 … 999` of 1000, so its network has never seen pure noise at `t = 1000`.
///
/// # Reference
///
/// Liu, Gong and Liu 2022, arXiv 2209.03003, equation 1; Lipman et al. 2022, arXiv 2210.02747, equation 20.
///
/// ```
/// use fpdm_core::{Flow, NoiseSchedule};
///
/// let level = Flow::default().level(250.)?;
/// assert_eq!((level.alpha, level.sigma), (0.75, 0.25));
/// # fpdm_core::Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flow {
    /// The time of pure noise.
    pub steps: f64,
}

impl Default for Flow {
    fn default() -> Self {
        Self { steps: 1000. }
    }
}

impl NoiseSchedule for Flow {
    fn level(&self, t: f64) -> Result<Level> {
        if !(self.steps > 0. && self.steps.is_finite()) {
            return Err(Error::config(
                "Flow.steps",
                format!("{} is no time; the published models use 1000", self.steps),
            ));
        }
        if !(0. ..=self.steps).contains(&t) {
            return Err(Error::config("t", format!("{t} is outside this schedule's times [0, {}]", self.steps)));
        }
        let sigma = t / self.steps;
        Ok(Level { t, alpha: 1. - sigma, sigma })
    }

    fn span(&self) -> (f64, f64) {
        (0., self.steps)
    }
}
