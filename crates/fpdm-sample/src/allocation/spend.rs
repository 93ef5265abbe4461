use fpdm_core::{Error, Result};

use super::Ledger;
use crate::Work;

/// A budget for one image, over both branches of guidance, in the user's unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spend {
    /// Evaluations of the implicit map.
    Applications(usize),
    /// Transformer blocks, `pre + applications × group + post` a solve. What does not fill a whole application is left.
    BlockPasses(usize),
}

/// Solves of the two branches of guidance, and how they share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Branches {
    /// Solves with labels.
    pub conditional: usize,
    /// Solves without; 0 where guidance never acts.
    pub unconditional: usize,
    /// What a solve without labels gets of what one with labels gets; 1 is the same.
    pub share: f64,
}

impl Branches {
    /// One branch.
    pub fn alone(solves: usize) -> Self {
        Self { conditional: solves, unconditional: 0, share: 1. }
    }
}

impl Spend {
    /// Applications that it buys for so many solves.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where it does not buy one a solve, with what would.
    ///
    /// ```
    /// use fpdm_core::dit::{Config, Size};
    /// use fpdm_sample::{Spend, Work};
    ///
    /// // Figure 1 of the paper: 560 blocks are 56 steps of 1 + 8 + 1.
    /// let work = Work::of(&Config::fpdm(Size::XL, 2));
    /// assert_eq!(Spend::BlockPasses(560).applications(&work, 56)?, 448);
    /// assert!(Spend::BlockPasses(167).applications(&work, 56).is_err());
    /// # fpdm_core::Result::<()>::Ok(())
    /// ```
    pub fn applications(self, work: &Work, solves: usize) -> Result<usize> {
        let (fixed, group) = (solves * (work.pre + work.post), work.group.max(1));
        let (applications, given, least) = match self {
            Self::Applications(n) => (n, format!("{n} applications"), format!("{solves}")),
            Self::BlockPasses(n) => {
                (n.saturating_sub(fixed) / group, format!("{n} block passes"), format!("{}", fixed + solves * group))
            }
        };
        if applications < solves {
            let why = format!("{given} cannot cover {solves} solves; allow at least {least}, or use fewer steps");
            return Err(Error::config("budget", why));
        }
        Ok(applications)
    }

    /// The ledgers of the two branches.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where it does not buy one application a solve, or the share is not positive.
    pub fn split(self, work: &Work, branches: Branches) -> Result<(Ledger, Ledger)> {
        let Branches { conditional, unconditional, share } = branches;
        if !(share > 0. && share.is_finite()) {
            return Err(Error::config("unconditional share", format!("{share} is no share; use 0.5 or 1")));
        }
        let total = self.applications(work, conditional + unconditional)?;
        let weight = unconditional as f64 * share;
        let ideal = (total as f64 * weight / (conditional as f64 + weight)).round() as usize;
        let second = if unconditional == 0 { 0 } else { ideal.clamp(unconditional, total - conditional) };
        Ok((Ledger::new(total - second, conditional)?, Ledger::new(second, unconditional)?))
    }
}
