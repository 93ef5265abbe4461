use candle_core::Tensor;
use fpdm_core::{Iterate, Result, StopReason, StopRule};

/// A budget that measures its last application, and every one if it may stop at a threshold; and that keeps an early
/// iterate for iteration guidance.
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

    /// How many times smaller the residual became with every application.
    pub(super) fn rate(&self) -> Option<f64> {
        let ((i, r0), (j, r1)) = (self.first?, self.last);
        (j > i && r0 > 0. && r1 > 0.).then(|| (r0 / r1).powf(1. / (j - i) as f64))
    }
}

impl StopRule for Watch {
    fn check(&mut self, iter: usize, it: &Iterate) -> Result<Option<StopReason>> {
        if self.keep == Some(iter) && iter < self.limit {
            self.kept = Some(it.next.clone());
        }
        let done = iter >= self.limit;
        if !done && self.threshold.is_none() {
            return Ok(None);
        }
        let residual = it.worst(iter)?.rel;
        self.first.get_or_insert((iter, residual));
        self.last = (iter, residual);
        if self.threshold.is_some_and(|least| residual <= least) {
            return Ok(Some(StopReason::Converged));
        }
        Ok(done.then_some(StopReason::Budget))
    }

    fn limit(&self) -> Option<usize> {
        Some(self.limit)
    }
}
