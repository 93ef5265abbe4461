//! The baseline, seen as an implicit network.

use std::sync::Arc;

use candle_core::Tensor;
use fpdm_core::dit::Dit;
use fpdm_core::{Error, ImplicitModel, Problem, Result, Staged};

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
        problem(&self.0, self.0.inputs(x, t, y)?)
    }

    fn staged(&self) -> Option<Arc<dyn Staged>> {
        Some(Arc::new(Self(self.0.clone())))
    }
}

/// Nothing is computed before the solve: a problem is made of its inputs.
impl Staged for Explicit {
    fn inputs(&self, x: &Tensor, t: &Tensor, y: &Tensor) -> Result<Vec<Tensor>> {
        self.0.inputs(x, t, y)
    }

    fn state(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        Ok(inputs.to_vec())
    }

    fn assemble(&self, state: &[Tensor]) -> Result<Problem> {
        problem(&self.0, state.to_vec())
    }
}

fn problem(network: &Arc<Dit>, inputs: Vec<Tensor>) -> Result<Problem> {
    let config = network.config();
    let Some(x) = inputs.first() else { return Err(Error::shape("`state`: x, t and perhaps y", "2 or 3 tensors", 0)) };
    let [h, w] = config.input_size;
    let z0 = Tensor::zeros((x.dim(0)?, config.out_channels(), h, w), x.dtype(), x.device())?;
    let network = network.clone();
    let map = move |_: &Tensor| network.forward_inputs(&inputs);
    Ok(Problem::new(Arc::new(map), z0, |z| Ok(z.clone())))
}
