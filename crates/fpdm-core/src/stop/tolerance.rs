use super::{StopRule, due};
use crate::{Error, Iterate, Result, StopReason};

/// Stops when every sample has `‖f(z) − z‖ ≤ abs` or `‖f(z) − z‖ ≤ rel·‖f(z)‖`.
///
/// A batch goes on until its worst sample is there. Norms are over all dimensions but the first. The iterate returned
/// is one step past the one that was measured.
///
/// # Cost
///
/// Two reductions and one synchronisation at every `every`-th iterate.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use fpdm_core::{Picard, Result, StopReason, Tolerance, solve};
///
/// let f = |z: &Tensor| -> Result<Tensor> { Ok(z.affine(0.5, 1.)?) };
/// let z0 = Tensor::zeros(1, DType::F64, &Device::Cpu)?;
/// let found = solve(&Picard::default(), &f, z0, &mut Tolerance { abs: 1e-3, rel: 0., every: 4 })?;
/// assert_eq!((found.iters, found.reason), (12, StopReason::Converged)); // 2⁻¹⁰ is small enough at 11
/// # Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// The residual that is small enough whatever the size of `f(z)`.
    pub abs: f64,
    /// The residual that is small enough as a share of `‖f(z)‖`.
    pub rel: f64,
    /// Iterates from one measurement to the next, at least 1.
    pub every: usize,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self { abs: 0., rel: 1e-3, every: 1 }
    }
}

impl StopRule for Tolerance {
    fn check(&mut self, iter: usize, it: &Iterate) -> Result<Option<StopReason>> {
        for (field, value) in [("Tolerance.abs", self.abs), ("Tolerance.rel", self.rel)] {
            if !(value >= 0. && value.is_finite()) {
                return Err(Error::config(field, format!("{value} is no tolerance; use 0 or a small number")));
            }
        }
        if !due("Tolerance", self.every, iter)? {
            return Ok(None);
        }
        let all = it.residuals()?;
        if all.iter().any(|r| !r.abs.is_finite() || r.rel.is_nan()) {
            return Err(Error::NonFinite { at: "the residual f(z) − z".into(), iter });
        }
        Ok(all.iter().all(|r| r.abs <= self.abs || r.rel <= self.rel).then_some(StopReason::Converged))
    }
}
