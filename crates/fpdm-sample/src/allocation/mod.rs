//! How much each solve may spend.
//!
//! A policy proposes, the [`Ledger`] disposes: at least one application now, at least one kept for every later solve,
//! never more than the total. Policies speak of progress `u` from 0, pure noise, to 1: *early* is noisy.

mod adaptive;
mod counts;
mod curve;
mod ledger;
mod ramp;
mod spend;
mod table;

pub use self::adaptive::Adaptive;
pub use self::counts::Counts;
pub use self::curve::Curve;
pub use self::ledger::Ledger;
pub use self::ramp::{Ramp, Slope};
pub use self::spend::{Branches, Spend};
pub use self::table::Table;
use crate::SolveRecord;

/// Says how many applications the next solve should have.
///
/// ```
/// use fpdm_sample::{AllocationPolicy, Ledger};
///
/// /// Everything on pure noise.
/// struct Greedy;
/// impl AllocationPolicy for Greedy {
///     fn propose(&mut self, ledger: &Ledger) -> usize {
///         ledger.total()
///     }
/// }
/// let ledger = Ledger::new(10, 4)?;
/// assert_eq!(ledger.allow(Greedy.propose(&ledger)), 7);
/// # fpdm_core::Result::<()>::Ok(())
/// ```
pub trait AllocationPolicy {
    /// Applications for the solve that comes next; the ledger cuts it to what is allowed.
    fn propose(&mut self, ledger: &Ledger) -> usize;

    /// The relative residual of the worst sample at which that solve may stop before it has spent them.
    fn threshold(&self) -> Option<f64> {
        None
    }

    /// Is told what the solve made of it, before `ledger` has booked it.
    fn observe(&mut self, _solve: &SolveRecord, _ledger: &Ledger) {}
}

impl<P: AllocationPolicy + ?Sized> AllocationPolicy for Box<P> {
    fn propose(&mut self, ledger: &Ledger) -> usize {
        (**self).propose(ledger)
    }

    fn threshold(&self) -> Option<f64> {
        (**self).threshold()
    }

    fn observe(&mut self, solve: &SolveRecord, ledger: &Ledger) {
        (**self).observe(solve, ledger);
    }
}

/// The same for every solve; what does not divide goes to the noisy end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uniform;

impl AllocationPolicy for Uniform {
    fn propose(&mut self, ledger: &Ledger) -> usize {
        ledger.left().div_ceil(ledger.solves_left().max(1))
    }
}

/// `total` in whole parts: one each, and the rest in proportion to `weights`, rounded by largest remainder.
///
/// The parts add up to `total` exactly where it is at least one each; below that, all are 1. Ties go to the front.
/// Weights that are negative or no number count as 0; if all do, parts are even.
///
/// ```
/// use fpdm_sample::apportion;
///
/// assert_eq!(apportion(&[2., 1., 0.], 9), [5, 3, 1]);
/// assert_eq!(apportion(&[1., 1., 1.], 8), [3, 3, 2]);
/// ```
pub fn apportion(weights: &[f64], total: usize) -> Vec<usize> {
    let largest = weights.iter().copied().filter(|w| w.is_finite()).fold(0., f64::max);
    // Scaled by the largest, so that the sum cannot overflow.
    let weigh = |w: &f64| {
        if largest == 0. {
            1.
        } else if w.is_finite() {
            w.max(0.) / largest
        } else {
            0.
        }
    };
    let weights: Vec<f64> = weights.iter().map(weigh).collect();
    let (rest, sum) = (total.saturating_sub(weights.len()), weights.iter().sum::<f64>());
    let ideal: Vec<f64> = weights.iter().map(|w| w / sum * rest as f64).collect();
    let mut parts: Vec<usize> = ideal.iter().map(|v| 1 + v.floor() as usize).collect();
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by(|&i, &j| ideal[j].fract().total_cmp(&ideal[i].fract()));
    let spent = parts.iter().sum::<usize>() - parts.len();
    for &i in order.iter().cycle().take(rest.saturating_sub(spent)) {
        parts[i] += 1;
    }
    parts
}
