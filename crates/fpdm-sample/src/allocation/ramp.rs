use super::ledger::progress;
use super::{AllocationPolicy, Ledger, apportion};

/// How a [`Ramp`] goes from one end to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Slope {
    /// By equal differences.
    #[default]
    Linear,
    /// By equal ratios.
    Geometric,
}

/// From `early` parts on pure noise to `late` parts on the last level: one application each, the rest in these
/// proportions. Spends the total exactly.
///
/// # Reference
///
/// Bai and Melas-Kyriazi 2024, arXiv 2401.08741, Table 5: their "increasing" and "decreasing" with 0.5 and 1.5.
///
/// ```
/// use fpdm_sample::{AllocationPolicy, Ledger, Ramp};
///
/// assert_eq!(Ramp::EARLY.plan(15, 3), [7, 5, 3]);
/// assert_eq!(Ramp::LATE.plan(15, 3), [3, 5, 7]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ramp {
    /// The weight of pure noise.
    pub early: f64,
    /// The weight of the last level.
    pub late: f64,
    /// The curve between the two.
    pub slope: Slope,
}

impl Ramp {
    /// Three times as much above one application for pure noise as for the last level.
    pub const EARLY: Self = Self { early: 1.5, late: 0.5, slope: Slope::Linear };
    /// The other way round.
    pub const LATE: Self = Self { early: 0.5, late: 1.5, slope: Slope::Linear };

    /// The weight at progress `u` in [0, 1].
    pub fn weight(&self, u: f64) -> f64 {
        match self.slope {
            Slope::Linear => self.early + u * (self.late - self.early),
            Slope::Geometric => self.early.powf(1. - u) * self.late.powf(u),
        }
    }

    /// The whole trajectory, from noise to data.
    pub fn plan(&self, total: usize, solves: usize) -> Vec<usize> {
        let weights: Vec<f64> = (0..solves).map(|i| self.weight(progress(i, solves))).collect();
        apportion(&weights, total)
    }
}

impl AllocationPolicy for Ramp {
    fn propose(&mut self, ledger: &Ledger) -> usize {
        by_plan(&self.plan(ledger.total(), ledger.solves()), ledger)
    }
}

/// The plan's share, and at the end whatever solves that stopped early have left.
pub(super) fn by_plan(plan: &[usize], ledger: &Ledger) -> usize {
    match ledger.solves_left() {
        1 => ledger.left(),
        _ => plan.get(ledger.done()).copied().unwrap_or(1),
    }
}
