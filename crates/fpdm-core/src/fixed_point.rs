//! The map `z = f(z)`, its iterates, and what a solve returns.

use std::sync::Arc;

use candle_core::Tensor;

use crate::Result;

/// `f` in `z = f(z)`, already bound to its conditioning. Closures are maps.
pub trait FixedPointMap: Send + Sync {
    /// One application: `z` and `f(z)` have the same shape, `(B, T, D)` in the networks here.
    fn apply(&self, z: &Tensor) -> Result<Tensor>;
}

impl<F> FixedPointMap for F
where
    F: Fn(&Tensor) -> Result<Tensor> + Send + Sync,
{
    fn apply(&self, z: &Tensor) -> Result<Tensor> {
        self(z)
    }
}

/// A map whose point and image are cut from the autograd graph, so that nothing outlives one application.
pub struct Detached(pub Arc<dyn FixedPointMap>);

impl FixedPointMap for Detached {
    fn apply(&self, z: &Tensor) -> Result<Tensor> {
        Ok(self.0.apply(&z.detach())?.detach())
    }
}
