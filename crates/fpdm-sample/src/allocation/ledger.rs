use fpdm_core::{Error, Result};

/// What a trajectory may spend and has spent, in applications.
///
/// The law: every solve gets at least one application, and the total is never exceeded. The last solve is allowed
/// all that is left, so a static policy can spend the total exactly.
///
/// ```
/// use fpdm_sample::Ledger;
///
/// let mut ledger = Ledger::new(5, 3)?;
/// assert_eq!(ledger.allow(100), 3); // one is kept for each of the two later solves
/// ledger.book(3);
/// assert_eq!((ledger.left(), ledger.allow(0)), (2, 1));
/// assert!(Ledger::new(4, 5).is_err());
/// # fpdm_core::Result::<()>::Ok(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    total: usize,
    solves: usize,
    spent: usize,
    done: usize,
}

impl Ledger {
    /// A total for so many solves. No solves need no total: a guidance branch that never acts.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where the total is below one application a solve.
    pub fn new(total: usize, solves: usize) -> Result<Self> {
        if total < solves {
            let why = format!(
                "{total} applications cannot cover {solves} solves; allow at least {solves}, or use fewer steps"
            );
            return Err(Error::config("budget", why));
        }
        Ok(Self { total, solves, spent: 0, done: 0 })
    }

    /// Applications of the whole trajectory.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Solves of the whole trajectory.
    pub fn solves(&self) -> usize {
        self.solves
    }

    /// Solves booked so far.
    pub fn done(&self) -> usize {
        self.done
    }

    /// Applications booked so far.
    pub fn spent(&self) -> usize {
        self.spent
    }

    /// Applications not yet booked.
    pub fn left(&self) -> usize {
        self.total - self.spent
    }

    /// Solves not yet booked.
    pub fn solves_left(&self) -> usize {
        self.solves - self.done
    }

    /// Where the next solve stands: 0 at the first, on pure noise, and 1 at the last.
    pub fn progress(&self) -> f64 {
        progress(self.done, self.solves)
    }

    /// What the next solve gets of `proposed`: 0 only when no solve is left.
    pub fn allow(&self, proposed: usize) -> usize {
        match self.solves_left() {
            0 => 0,
            // Every later solve keeps one, and the law has seen to it that one is left for this.
            n => proposed.clamp(1, self.left() - (n - 1)),
        }
    }

    /// Books a solve that has spent so much.
    ///
    /// # Panics
    ///
    /// Where it is more than [`Ledger::allow`] allows, in debug builds; otherwise the excess is not booked.
    pub fn book(&mut self, spent: usize) {
        debug_assert!(self.solves_left() > 0 && (1..=self.allow(usize::MAX)).contains(&spent));
        self.spent += self.allow(spent);
        self.done = (self.done + 1).min(self.solves);
    }
}

pub(super) fn progress(i: usize, n: usize) -> f64 {
    if n < 2 { 0. } else { i as f64 / (n - 1) as f64 }
}
