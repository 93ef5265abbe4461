//! The learning rate over time.

use fpdm_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Not at all.
    #[default]
    Constant,
    /// Along half a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5).
    Cosine,
    /// In a straight line.
    Linear,
}

/// A linear warm-up to `peak`, then a decay that reaches `peak·floor` at step `total`.
///
/// ```
/// use fpdm_train::{Decay, LearningRate};
///
/// let lr = LearningRate { peak: 1., warmup: 4, decay: Decay::Cosine, total: 12, floor: 0. };
/// assert_eq!((lr.at(0), lr.at(3), lr.at(12)), (0.25, 1., 0.));
/// assert!((lr.at(8) - 0.5).abs() < 1e-12);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LearningRate {
    /// The highest rate.
    pub peak: f64,
    /// Steps of warm-up; the first of them has `peak / warmup`.
    pub warmup: u64,
    /// What comes after it.
    pub decay: Decay,
    /// The step at which the decay has ended; not used by [`Decay::Constant`].
    pub total: u64,
    /// What is left of `peak` then, in [0, 1].
    pub floor: f64,
}

impl Default for LearningRate {
    /// The published training: 1e-4 throughout.
    fn default() -> Self {
        Self { peak: 1e-4, warmup: 0, decay: Decay::Constant, total: 0, floor: 0. }
    }
}

impl LearningRate {
    /// Refuses values outside their ranges.
    pub fn check(&self) -> Result<()> {
        if !(self.peak >= 0. && self.peak.is_finite()) {
            return Err(Error::config("lr.peak", format!("{} must be 0 or more; use 1e-4", self.peak)));
        }
        if !(0. ..=1.).contains(&self.floor) {
            return Err(Error::config("lr.floor", format!("{} is outside [0, 1]", self.floor)));
        }
        if self.decay != Decay::Constant && self.total <= self.warmup {
            let why = format!(
                "{} is not after the warm-up of {} steps; use more steps, less warm-up or no decay",
                self.total, self.warmup
            );
            return Err(Error::config("lr.total", why));
        }
        Ok(())
    }

    /// The rate of step `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let length = self.total.saturating_sub(self.warmup).max(1) as f64;
        let progress = ((step - self.warmup) as f64 / length).min(1.);
        let share = match self.decay {
            Decay::Constant => return self.peak,
            Decay::Cosine => 0.5 * (1. + (std::f64::consts::PI * progress).cos()),
            Decay::Linear => 1. - progress,
        };
        self.peak * (self.floor + (1. - self.floor) * share)
    }
}
