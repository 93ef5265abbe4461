use super::{AllocationPolicy, Ledger};
use crate::SolveRecord;

/// Stops every solve at the same residual, and tunes that residual online such that the budget just lasts.
///
/// Solves that are easy leave applications to those that are hard. With `k` applications spent where the even share of
/// what was left is `s`, and a residual that shrinks `r` times an application, the threshold becomes
/// `θ · (1/r)^(gain·(k − s))`: overspending raises it, saving lowers it. Unless `threshold` says otherwise, the first
/// solve spends its even share, and where it arrives is the first threshold.
///
/// It spends at most the budget and mostly a little less. Nothing is carried from one trajectory to the next. One policy
/// for a batch goes by its worst sample, so that images depend on the batch they are in; to have each depend on its own
/// number alone, give each its own policy: [`FixedPointDenoiser::per_image`](crate::FixedPointDenoiser::per_image).
///
/// # Reference
///
/// After Bai and Melas-Kyriazi 2024, arXiv 2401.08741, supplement C, which searches the threshold by repeating whole
/// trajectories.
///
/// # Cost
///
/// One reduction and one synchronisation an application.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adaptive {
    /// The relative residual to stop at; `None` until the first solve has shown one.
    pub threshold: Option<f64>,
    /// How hotly the threshold is corrected, above 0; 1 corrects all of the last solve's surplus in the next.
    pub gain: f64,
    /// How many even shares one solve may spend at the most.
    pub most: f64,
    /// How many times smaller an application makes the residual; a guess until a solve has shown it.
    pub rate: f64,
}

impl Default for Adaptive {
    fn default() -> Self {
        Self { threshold: None, gain: 0.5, most: 4., rate: 2. }
    }
}

impl Adaptive {
    /// Starts from a known threshold.
    pub fn from_threshold(threshold: f64) -> Self {
        Self { threshold: Some(threshold), ..Self::default() }
    }
}

fn even_share(ledger: &Ledger) -> f64 {
    ledger.left() as f64 / ledger.solves_left().max(1) as f64
}

impl AllocationPolicy for Adaptive {
    fn propose(&mut self, ledger: &Ledger) -> usize {
        let share = even_share(ledger);
        match self.threshold {
            None => share.round() as usize,
            Some(_) => (share * self.most).ceil() as usize,
        }
    }

    fn threshold(&self) -> Option<f64> {
        // Asked for even in the first solve, so that its rate is measured: no residual is below 0.
        Some(self.threshold.unwrap_or(0.))
    }

    fn observe(&mut self, solve: &SolveRecord, ledger: &Ledger) {
        if let Some(rate) = solve.rate.filter(|r| r.is_finite()) {
            self.rate = rate.clamp(1.1, 10.);
        }
        let surplus = solve.applications as f64 - even_share(ledger);
        self.threshold = match self.threshold {
            None => Some(solve.residual),
            Some(threshold) => {
                let exponent = (self.gain * surplus).clamp(-2., 2.);
                Some((threshold * self.rate.powf(exponent)).clamp(f64::MIN_POSITIVE, 1e3))
            }
        };
    }
}
