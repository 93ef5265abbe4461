use candle_core::Tensor;
use fpdm_core::{Iterate, Result, StopReason, StopRule};

/// A budget that measures its last application, and every one if it may stop at a threshold; and that keeps an early
/// iterate for iteration guidance. For a batch, by its worst sample, or for one sample of it.
pub(super) struct Watch {
    pub(super) limit: usize,
    pub(super) threshold: Option<f64>,
    pub(super) keep: Option<usize>,
    pub(super) kept: Option<Tensor>,
    pub(super) first: Option<(usize, f64)>,
    pub(super) last: (usize, f64),
}

impl Watch {
    pub(super) fn new(limit: usize, threshold: Option<f64>, keep: Option<usize>) -> Self {
        Self { limit, threshold, keep, kept: None, first: None, last: (0, 0.) }
    }

    /// Looks at the point after application `iter`, and at its residual if it has to.
    pub(super) fn look(
        &mut self,
        iter: usize,
        next: &Tensor,
        residual: impl FnOnce() -> Result<f64>,
    ) -> Result<Option<StopReason>> {
        if self.keep == Some(iter) && iter < self.limit {
            self.kept = Some(next.clone());
        }
        let done = iter >= self.limit;
        if !done && self.threshold.is_none() {
            return Ok(None);
        }
        let residual = residual()?;
        self.first.get_or_insert((iter, residual));
        self.last = (iter, residual);
        if self.threshold.is_some_and(|least| residual <= least) {
            return Ok(Some(StopReason::Converged));
        }
        Ok(done.then_some(StopReason::Budget))
    }

    /// How many times smaller the residual became with every application.
    pub(super) fn rate(&self) -> Option<f64> {
        let ((i, r0), (j, r1)) = (self.first?, self.last);
        (j > i && r0 > 0. && r1 > 0.).then(|| (r0 / r1).powf(1. / (j - i) as f64))
    }
}

impl StopRule for Watch {
    fn check(&mut self, iter: usize, it: &Iterate) -> Result<Option<StopReason>> {
        self.look(iter, &it.next, || Ok(it.worst(iter)?.rel))
    }

    fn limit(&self) -> Option<usize> {
        Some(self.limit)
    }

    fn blind(&self, iter: usize) -> usize {
        if self.threshold.is_some() {
            return 0;
        }
        let kept = self.keep.filter(|keep| (iter + 1..self.limit).contains(keep));
        kept.unwrap_or(self.limit).saturating_sub(iter + 1)
    }
}
