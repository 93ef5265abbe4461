//! A convolution with its weights.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};
use fpdm_core::Result;
use fpdm_kernels::{Conv2d, conv2d};

/// Weights `(O, I, K, K)`, an optional bias `(O)`, and how they are applied.
#[derive(Clone, Debug)]
pub(crate) struct Conv {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
    pub(crate) how: Conv2d,
}

impl Conv {
    /// `vb` is at the layer; a square kernel of side `side`.
    pub(crate) fn new(vb: VarBuilder, from: usize, to: usize, side: usize, bias: bool, how: Conv2d) -> Result<Self> {
        // PyTorch's default: uniform within 1/sqrt(fan in).
        let bound = 1. / ((from * side * side) as f64).sqrt();
        let init = Init::Uniform { lo: -bound, up: bound };
        let weight = vb.get_with_hints((to, from, side, side), "weight", init)?;
        let bias = bias.then(|| vb.get_with_hints(to, "bias", init)).transpose()?;
        Ok(Self { weight, bias, how })
    }

    /// The same outside any graph, sharing storage.
    pub(crate) fn detach(&self) -> Self {
        Self { weight: self.weight.detach(), bias: self.bias.as_ref().map(Tensor::detach), how: self.how }
    }

    /// `(B, I, H, W)` → `(B, O, H', W')`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(conv2d(x, &self.weight, self.bias.as_ref(), None, self.how)?)
    }

    /// The same with `residual` `(B, O, H', W')` added before the activation.
    pub(crate) fn forward_onto(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        Ok(conv2d(x, &self.weight, self.bias.as_ref(), Some(residual), self.how)?)
    }
}

/// The 3×3 convolution that keeps the size.
pub(crate) const SAME: Conv2d = Conv2d { stride: 1, before: 1, after: 1, upsample: 1, relu: false, cap: None };
