//! The baseline, seen as an implicit network.

use std::sync::Arc;

use candle_core::Tensor;
use fpdm_core::dit::Dit;
use fpdm_core::{ImplicitModel, Problem, Result};

/// An explicit network whose map is constant: one application solves it, and more are wasted.
///
/// With [`Work::of`](crate::Work::of) its config, one application is its whole depth.
pub struct Explicit(Arc<Dit>);

impl Explicit {
    /// Wraps a DiT.
    pub fn new(network: Dit) -> Self {
        Self(Arc::new(network))
    }
}

impl ImplicitModel for Explicit {
    fn prepare(&self, x: &Tensor, t: &Tensor, y: &Tensor) -> Result<Problem> {
        let config = self.0.config();
        let (batch, [h, w]) = (x.dim(0)?, config.input_size);
        let z0 = Tensor::zeros((batch, config.out_channels(), h, w), x.dtype(), x.device())?;
        let (network, x, t, y) = (self.0.clone(), x.clone(), t.clone(), y.clone());
        let map = move |_: &Tensor| network.forward(&x, &t, &y);
        Ok(Problem::new(Arc::new(map), z0, |z| Ok(z.clone())))
    }
}
