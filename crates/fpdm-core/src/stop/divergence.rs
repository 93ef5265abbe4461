use super::{StopRule, due};
use crate::{Error, Iterate, Result, StopReason};

/// Stops when the worst sample's `‖f(z) − z‖` exceeds `factor` times its first measurement.
///
/// # Cost
///
/// Two reductions and one synchronisation at every `every`-th iterate.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use fpdm_core::{Divergence, Picard, Result, StopReason, solve};
///
/// let f = |z: &Tensor| -> Result<Tensor> { Ok(z.affine(2., 1.)?) };
/// let z0 = Tensor::zeros(1, DType::F64, &Device::Cpu)?;
/// let found = solve(&Picard::default(), &f, z0, &mut Divergence::default())?;
/// assert_eq!((found.iters, found.reason), (11, StopReason::Diverged)); // 2¹⁰ times the first residual
/// # Result::<()>::Ok(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Divergence {
    /// Growth of the residual that is too much, above 1.
    pub factor: f64,
    /// Iterates from one measurement to the next, at least 1.
    pub every: usize,
    first: Option<f64>,
}

impl Divergence {
    /// Endures a residual of `factor` times the first.
    pub fn new(factor: f64) -> Self {
        Self { factor, ..Self::default() }
    }
}

impl Default for Divergence {
    fn default() -> Self {
        Self { factor: 1e3, every: 1, first: None }
    }
}

impl StopRule for Divergence {
    fn check(&mut self, iter: usize, it: &Iterate) -> Result<Option<StopReason>> {
        if !(self.factor > 1. && self.factor.is_finite()) {
            return Err(Error::config("Divergence.factor", format!("{} is not above 1", self.factor)));
        }
        if iter == 1 {
            self.first = None;
        }
        if !due("Divergence", self.every, iter)? {
            return Ok(None);
        }
        let now = it.worst(iter)?.abs;
        Ok((now > self.factor * *self.first.get_or_insert(now)).then_some(StopReason::Diverged))
    }
}
