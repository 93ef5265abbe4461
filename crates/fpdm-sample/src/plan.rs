//! The noise levels of a trajectory.

use fpdm_core::{Error, Flow, Level, NoiseSchedule, Result, Schedule, Vp};

use crate::{Spacing, StepRule};

/// One step of a trajectory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Its number, 0 at the noisy end. A rule with memory forgets there.
    pub index: usize,
    /// Steps of the trajectory.
    pub count: usize,
    /// Where it starts.
    pub from: Level,
    /// Where it ends, less noisy.
    pub to: Level,
}

impl Step {
    /// Whether it is the last.
    pub fn is_last(&self) -> bool {
        self.index + 1 == self.count
    }
}

/// The steps of a trajectory, from noise to data.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    steps: Vec<Step>,
}

impl Plan {
    /// Steps over the schedule that a network was trained along: [`Plan::vp`] or [`Plan::flow`].
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for numbers that make no schedule, for no steps or too many.
    pub fn of(schedule: &Schedule, spacing: Spacing, steps: usize) -> Result<Self> {
        match (schedule, schedule.vp()?) {
            (Schedule::Flow { steps: duration }, _) => Self::flow(&Flow { steps: *duration }, spacing, steps),
            (_, Some(vp)) => Self::vp(&vp, spacing, steps),
            (other, None) => Err(Error::config("schedule", format!("`{other}` has no times"))),
        }
    }

    /// Steps over a variance-preserving schedule's whole times, down to the clean latent.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for no steps or more than the schedule has times.
    ///
    /// ```
    /// use fpdm_core::{Level, Vp};
    /// use fpdm_sample::{Plan, Spacing};
    ///
    /// let plan = Plan::vp(&Vp::default(), Spacing::Published, 3)?;
    /// assert_eq!(plan.steps().iter().map(|s| s.from.t).collect::<Vec<_>>(), [999., 500., 0.]);
    /// assert_eq!(plan.steps()[2].to, Level::CLEAN);
    /// # fpdm_core::Result::<()>::Ok(())
    /// ```
    pub fn vp(schedule: &Vp, spacing: Spacing, steps: usize) -> Result<Self> {
        let places = spacing.places(schedule.betas().len(), steps, true)?;
        Self::down_to_clean(schedule, &places)
    }

    /// Steps over the straight path, down to the clean latent. Times are not rounded, and place `k` of the grid is time
    /// `k + 1`: this path has pure noise at its last time, and no network is asked at time 0.
    pub fn flow(schedule: &Flow, spacing: Spacing, steps: usize) -> Result<Self> {
        schedule.level(0.)?;
        let places = spacing.places(schedule.steps as usize, steps, false)?;
        let times: Vec<f64> = places.iter().map(|k| k + 1.).collect();
        Self::down_to_clean(schedule, &times)
    }

    /// Steps between neighbours of `times`, falling, and from the last of them to the clean latent.
    pub fn down_to_clean(schedule: &dyn NoiseSchedule, times: &[f64]) -> Result<Self> {
        let mut levels = times.iter().map(|&t| schedule.level(t)).collect::<Result<Vec<_>>>()?;
        levels.push(Level::CLEAN);
        Self::new(levels.windows(2).map(|pair| (pair[0], pair[1])))
    }

    /// Any steps `(from, to)`. A step need not start where the one before it ended: some samplers round that way.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for no step, or one that does not go down in noise.
    pub fn new(pairs: impl IntoIterator<Item = (Level, Level)>) -> Result<Self> {
        let pairs: Vec<_> = pairs.into_iter().collect();
        if pairs.is_empty() {
            return Err(Error::config("steps", "0 steps make no image; use 1 or more"));
        }
        if let Some((from, to)) =
            pairs.iter().find(|(from, to)| to.snr().partial_cmp(&from.snr()) != Some(std::cmp::Ordering::Greater))
        {
            return Err(Error::config("plan", format!("{to:?} is not less noisy than {from:?}; go down in noise")));
        }
        let count = pairs.len();
        let step = |(index, (from, to))| Step { index, count, from, to };
        Ok(Self { steps: pairs.into_iter().enumerate().map(step).collect() })
    }

    /// The steps, the noisiest first.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Every level at which `rule` will ask the denoiser, in order.
    pub fn evaluations(&self, rule: &dyn StepRule) -> Vec<Level> {
        self.steps.iter().flat_map(|step| rule.evaluations(step)).collect()
    }

    /// Solves that `rule` needs.
    pub fn solves(&self, rule: &dyn StepRule) -> usize {
        self.evaluations(rule).len()
    }
}
