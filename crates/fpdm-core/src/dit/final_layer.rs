//! The last layer: a modulated layer norm and a projection to patches.

use candle_core::Tensor;

use super::block::NORM_EPS;
use super::linear::Linear;
use super::parameters::Weights;
use crate::Result;

#[derive(Clone, Debug)]
pub(super) struct FinalLayer {
    pub(super) linear: Linear,
    modulation: Linear,
}

impl FinalLayer {
    pub(super) fn read(weights: &Weights) -> Self {
        Self {
            linear: Linear::read(weights, "final_layer.linear"),
            modulation: Linear::read(weights, "final_layer.adaLN_modulation.1"),
        }
    }

    /// Shift and scale side by side, `(B, 2 D)`, for `silu(c)`.
    pub(super) fn modulate(&self, silu_c: &Tensor) -> Result<Tensor> {
        self.modulation.forward(silu_c)
    }

    /// Shift and scale, `(B, D)` each.
    pub(super) fn halves(m: &Tensor) -> Result<[Tensor; 2]> {
        let d = m.dim(1)? / 2;
        Ok([m.narrow(1, 0, d)?, m.narrow(1, d, d)?])
    }

    /// `(B, T, D)` to `(B, T, p p O)`.
    pub(super) fn forward(&self, x: &Tensor, [shift, scale]: &[Tensor; 2]) -> Result<Tensor> {
        self.linear.forward(&fpdm_kernels::layer_norm_modulate(x, shift, scale, NORM_EPS)?)
    }
}
