use super::{StopRule, due};
use crate::{Error, Iterate, Result, StopReason};

/// Stops when the worst sample's relative residual has not fallen below `shrink` times its best for `patience`
/// measurements: rounding, or a map without a fixed point.
///
/// # Reference
///
/// The protection of Broyden's method in TorchDEQ (Geng and Kolter 2023, arXiv 2310.18605), there after 30 steps.
///
/// # Cost
///
/// Two reductions and one synchronisation at every `every`-th iterate.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fpdm_core::{Picard, Result, Stagnation, StopReason, solve};
///
/// // A quarter turn never comes closer to its fixed point, the origin.
/// let turn = Tensor::new(&[[0f64, 1.], [-1., 0.]], &Device::Cpu)?;
/// let f = move |z: &Tensor| -> Result<Tensor> { Ok(z.matmul(&turn)?) };
/// let z0 = Tensor::new(&[[1f64, 0.]], &Device::Cpu)?;
/// let found = solve(&Picard::default(), &f, z0, &mut Stagnation::new(4))?;
/// assert_eq!((found.iters, found.reason), (5, StopReason::Stagnated));
/// # Result::<()>::Ok(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Stagnation {
    /// Measurements without progress that are endured, at least 1.
    pub patience: usize,
    /// Progress is a residual below `shrink` times the best before it, in (0, 1].
    pub shrink: f64,
    /// Iterates from one measurement to the next, at least 1.
    pub every: usize,
    best: f64,
    waited: usize,
}

impl Stagnation {
    /// Endures `patience` measurements without progress.
    pub fn new(patience: usize) -> Self {
        Self { patience, ..Self::default() }
    }
}

impl Default for Stagnation {
    fn default() -> Self {
        Self { patience: 10, shrink: 0.999, every: 1, best: f64::INFINITY, waited: 0 }
    }
}

impl StopRule for Stagnation {
    fn check(&mut self, iter: usize, it: &Iterate) -> Result<Option<StopReason>> {
        if self.patience == 0 {
            return Err(Error::config("Stagnation.patience", "0 stops at once; use 1 or more"));
        }
        if !(self.shrink > 0. && self.shrink <= 1.) {
            return Err(Error::config("Stagnation.shrink", format!("{} is outside (0, 1]", self.shrink)));
        }
        if iter == 1 {
            (self.best, self.waited) = (f64::INFINITY, 0);
        }
        if !due("Stagnation", self.every, iter)? {
            return Ok(None);
        }
        let now = it.worst(iter)?.rel;
        self.waited = if now < self.shrink * self.best { 0 } else { self.waited + 1 };
        self.best = self.best.min(now);
        Ok((self.waited >= self.patience).then_some(StopReason::Stagnated))
    }
}
