use fpdm_core::{Error, Result};
use rand::{Rng, RngCore};
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

/// Which times are trained.
///
/// ```
/// use fpdm_core::rng::{Stream, stream};
/// use fpdm_train::Times;
///
/// // Half of all times are on either side of the middle, few are at the ends.
/// let times = Times::LogitNormal { mean: 0., scale: 1. };
/// let drawn: Vec<f64> = (0..1000).map(|i| times.draw((0., 1.), &mut stream(0, Stream::Time, i))).collect();
/// let below = |t: f64| drawn.iter().filter(|d| **d < t).count();
/// assert!((450..550).contains(&below(0.5)));
/// assert!(below(0.05) < 10);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Times {
    /// Whole times, first and last included.
    #[default]
    Whole,
    /// All times of the schedule's span alike. The variational bound needs whole ones.
    Continuous,
    /// All times, at the share `1/(1 + exp(−(mean + scale·u)))` of the span for standard normal `u`: most in the
    /// middle, where a flow is hardest to tell.
    ///
    /// # Reference
    /// Esser et al. 2024, arXiv 2403.03206, section 3.1, equation 19; they use mean 0 and scale 1.
    LogitNormal {
        /// Of the logit; above 0 is more noise.
        mean: f64,
        /// Its deviation, above 0.
        scale: f64,
    },
}

impl Times {
    /// Refuses values outside their ranges.
    pub fn check(self) -> Result<()> {
        match self {
            Self::LogitNormal { mean, scale } if !(mean.is_finite() && scale > 0. && scale.is_finite()) => {
                let why = format!("a logit of mean {mean} and deviation {scale}: use 0 and 1");
                Err(Error::config("times", why))
            }
            _ => Ok(()),
        }
    }

    /// One time of the span from `first` to `last`.
    pub fn draw(self, (first, last): (f64, f64), rng: &mut dyn RngCore) -> f64 {
        match self {
            Self::Whole => rng.random_range(first.ceil() as i64..=last.floor() as i64) as f64,
            Self::Continuous => rng.random_range(first..=last),
            Self::LogitNormal { mean, scale } => {
                let u: f64 = rng.sample(StandardNormal);
                first + (last - first) / (1. + (-(mean + scale * u)).exp())
            }
        }
    }
}
