use candle_core::Tensor;
use fpdm_core::{Error, Level, NoiseSchedule, Result};
use serde::{Deserialize, Serialize};

/// `weight` times the mean square between the solution at a time and the one at a cleaner neighbour, of the same
/// latent and noise. The neighbour's gets no gradient.
///
/// Solutions that change little from one time to the next make a good start of the next solve when sampling.
///
/// # Reference
/// Miele et al. 2026, arXiv 2605.31215 (there on the states after the post-layers).
///
/// # Cost
/// The layers before the implicit part and as many applications without gradient as the step's solve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consistency {
    /// What it counts beside the loss, above 0.
    pub weight: f64,
    /// How much earlier the neighbour is, in units of time, above 0; it is cut off at the schedule's first time.
    pub gap: f64,
}

impl Default for Consistency {
    /// Weight 0.1, 20 of 1000 steps: neighbours of a sampler with 50 steps.
    fn default() -> Self {
        Self { weight: 0.1, gap: 20. }
    }
}

impl Consistency {
    /// The neighbours of `levels`.
    pub fn neighbours(&self, schedule: &dyn NoiseSchedule, levels: &[Level]) -> Result<Vec<Level>> {
        for (field, value) in [("consistency.weight", self.weight), ("consistency.gap", self.gap)] {
            if !(value > 0. && value.is_finite()) {
                return Err(Error::config(field, format!("{value} must be above 0")));
            }
        }
        let (first, _) = schedule.span();
        levels.iter().map(|level| schedule.level((level.t - self.gap).max(first))).collect()
    }

    /// The loss between the solution `z` and the neighbour's, a scalar.
    pub fn loss(&self, z: &Tensor, neighbour: &Tensor) -> Result<Tensor> {
        Ok(((z - neighbour.detach())?.sqr()?.mean_all()? * self.weight)?)
    }
}
