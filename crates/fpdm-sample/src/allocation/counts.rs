use fpdm_core::{Error, Result};

use super::{AllocationPolicy, Ledger};

/// So many applications for each solve, from noise to data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// One number a solve, the noisiest first.
    pub from_noise: Vec<usize>,
}

impl Counts {
    /// Their sum: the total of a ledger that they spend exactly.
    pub fn total(&self) -> usize {
        self.from_noise.iter().sum()
    }

    /// Refuses counts for another number of solves, or with a 0 among them.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] with the fix.
    pub fn check(&self, solves: usize) -> Result<()> {
        if self.from_noise.len() != solves {
            let why = format!("{} counts for {solves} solves; give one a solve", self.from_noise.len());
            return Err(Error::config("allocation", why));
        }
        match self.from_noise.iter().position(|&n| n == 0) {
            Some(i) => Err(Error::config("allocation", format!("count {} from noise is 0; use 1 or more", i + 1))),
            None => Ok(()),
        }
    }

    /// The published rounding of a linear ramp of weights `early` to `late`: from the clean end on, about half of the
    /// solves are rounded up and the rest down, fewer up until the sum fits.
    ///
    /// It jumps where rounding turns and can leave some of the budget unspent; [`Ramp`](super::Ramp) does neither.
    ///
    /// # Reference
    ///
    /// The published code of Bai and Melas-Kyriazi 2024, whose "increasing" is `(1.5, 0.5)` here: it reads its list
    /// from the end, so that the noisiest level gets the last entry.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a total below one a solve, for which the published code returns zeros.
    ///
    /// ```
    /// use fpdm_sample::Counts;
    ///
    /// assert_eq!(Counts::published_ramp(1.5, 0.5, 20, 4)?.from_noise, [7, 5, 5, 3]);
    /// # fpdm_core::Result::<()>::Ok(())
    /// ```
    pub fn published_ramp(early: f64, late: f64, total: usize, solves: usize) -> Result<Self> {
        Ledger::new(total, solves)?;
        let weights: Vec<f64> =
            (0..solves).map(|i| late + super::ledger::progress(i, solves) * (early - late)).collect();
        let sum: f64 = weights.iter().sum();
        let ideal: Vec<f64> = weights.iter().map(|w| 1. + (total - solves) as f64 * w / sum).collect();
        let rounded = |up: usize| {
            let round = |(i, v): (usize, &f64)| if i < up { v.ceil() as usize } else { v.floor() as usize };
            ideal.iter().enumerate().map(round).collect::<Vec<_>>()
        };
        let fits = (0..=solves / 2).rev().map(rounded).find(|parts| parts.iter().sum::<usize>() <= total);
        // None fits only where the weights are no proportions.
        let mut from_clean = fits.ok_or_else(|| {
            Error::config("allocation", format!("a ramp from {early} to {late}; use positive weights"))
        })?;
        from_clean.reverse();
        Ok(Self { from_noise: from_clean })
    }
}

impl AllocationPolicy for Counts {
    fn propose(&mut self, ledger: &Ledger) -> usize {
        self.from_noise.get(ledger.done()).copied().unwrap_or(1)
    }
}
