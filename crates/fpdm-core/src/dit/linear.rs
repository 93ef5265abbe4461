//! An affine layer.

use candle_core::Tensor;

use super::parameters::Weights;
use crate::Result;

/// `x wᵀ + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `(O, I)`.
    pub w: Tensor,
    /// `(O)`.
    pub b: Tensor,
}

impl Linear {
    pub(super) fn read(weights: &Weights, name: &str) -> Self {
        Self { w: weights.get(&format!("{name}.weight")), b: weights.get(&format!("{name}.bias")) }
    }

    /// `(.., I)` to `(.., O)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(fpdm_kernels::linear(x, &self.w, Some(&self.b))?)
    }

    /// The same layer outside any graph; storage is shared, so later updates of the weights are seen.
    pub fn detach(&self) -> Self {
        Self { w: self.w.detach(), b: self.b.detach() }
    }
}
