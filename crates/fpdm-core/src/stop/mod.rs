//! When a solve stops.

mod divergence;
mod stagnation;
mod tolerance;

pub use self::divergence::Divergence;
pub use self::stagnation::Stagnation;
pub use self::tolerance::Tolerance;
use crate::{Error, Iterate, Result, StopReason};

/// Looks at an iterate and says whether it is the last.
///
/// A rule can serve many solves: `iter` is 1 at the first iterate of each, and a rule with memory forgets there.
/// Tuples, vectors and boxes of rules are rules: the first that stops gives the reason, and those after it are not
/// asked, so put the cheap ones first.
///
/// ```
/// use fpdm_core::{Budget, Divergence, Stagnation, StopRule, Tolerance};
///
/// let rule = (Budget(50), Tolerance::default(), Divergence::default());
/// assert_eq!(rule.limit(), Some(50));
/// let chosen: Vec<Box<dyn StopRule>> = vec![Box::new(Budget(9)), Box::new(Stagnation::default())];
/// assert_eq!(chosen.limit(), Some(9));
/// ```
pub trait StopRule {
    /// The reason to stop after iterate number `iter`, counted from 1, or `None` to go on.
    fn check(&mut self, iter: usize, it: &Iterate) -> Result<Option<StopReason>>;

    /// The number of iterates after which this rule stops for certain, if it knows. With 0 a solve does not begin.
    fn limit(&self) -> Option<usize> {
        None
    }

    /// How many iterates after number `iter` it need not be asked about: it would neither stop there nor look.
    ///
    /// A solver without memory then does them at once ([`Solver::leap`](crate::Solver::leap)). 0, the default, is every
    /// iterate.
    fn blind(&self, _iter: usize) -> usize {
        0
    }
}

/// Stops after so many applications, without looking at them.
///
/// # Cost
///
/// None, and no synchronisation.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use fpdm_core::{Budget, Picard, Result, StopReason, solve};
///
/// let f = |z: &Tensor| -> Result<Tensor> { Ok(z.affine(0.5, 1.)?) };
/// let z0 = Tensor::zeros(1, DType::F64, &Device::Cpu)?;
/// let found = solve(&Picard::default(), &f, z0, &mut Budget(3))?;
/// assert_eq!((found.applications, found.reason), (3, StopReason::Budget));
/// assert_eq!(found.z.to_vec1::<f64>()?, [1.75]);
/// # Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget(pub usize);

impl StopRule for Budget {
    fn check(&mut self, iter: usize, _: &Iterate) -> Result<Option<StopReason>> {
        Ok((iter >= self.0).then_some(StopReason::Budget))
    }

    fn limit(&self) -> Option<usize> {
        Some(self.0)
    }

    fn blind(&self, iter: usize) -> usize {
        self.0.saturating_sub(iter + 1)
    }
}

impl<R: StopRule + ?Sized> StopRule for Box<R> {
    fn check(&mut self, iter: usize, it: &Iterate) -> Result<Option<StopReason>> {
        (**self).check(iter, it)
    }

    fn limit(&self) -> Option<usize> {
        (**self).limit()
    }

    fn blind(&self, iter: usize) -> usize {
        (**self).blind(iter)
    }
}

impl<R: StopRule> StopRule for Vec<R> {
    fn check(&mut self, iter: usize, it: &Iterate) -> Result<Option<StopReason>> {
        self.iter_mut().find_map(|rule| rule.check(iter, it).transpose()).transpose()
    }

    fn limit(&self) -> Option<usize> {
        self.iter().filter_map(StopRule::limit).min()
    }

    fn blind(&self, iter: usize) -> usize {
        self.iter().map(|rule| rule.blind(iter)).min().unwrap_or(0)
    }
}

impl<A: StopRule, B: StopRule> StopRule for (A, B) {
    fn check(&mut self, iter: usize, it: &Iterate) -> Result<Option<StopReason>> {
        Ok(match self.0.check(iter, it)? {
            None => self.1.check(iter, it)?,
            reason => reason,
        })
    }

    fn limit(&self) -> Option<usize> {
        self.0.limit().into_iter().chain(self.1.limit()).min()
    }

    fn blind(&self, iter: usize) -> usize {
        self.0.blind(iter).min(self.1.blind(iter))
    }
}

impl<A: StopRule, B: StopRule, C: StopRule> StopRule for (A, B, C) {
    fn check(&mut self, iter: usize, it: &Iterate) -> Result<Option<StopReason>> {
        let (a, b, c) = self;
        Ok(match a.check(iter, it)? {
            None => match b.check(iter, it)? {
                None => c.check(iter, it)?,
                reason => reason,
            },
            reason => reason,
        })
    }

    fn limit(&self) -> Option<usize> {
        [self.0.limit(), self.1.limit(), self.2.limit()].into_iter().flatten().min()
    }

    fn blind(&self, iter: usize) -> usize {
        self.0.blind(iter).min(self.1.blind(iter)).min(self.2.blind(iter))
    }
}

/// Whether a rule that measures every `every` iterates does so now.
fn due(rule: &str, every: usize, iter: usize) -> Result<bool> {
    if every == 0 {
        return Err(Error::config(format!("{rule}.every"), "0 measures never; use 1 for every iterate"));
    }
    Ok(iter.is_multiple_of(every))
}
