//! The residual block.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use fpdm_core::Result;
use fpdm_kernels::Conv2d;

use crate::conv::{Conv, SAME};

/// Three convolutions onto a shortcut, a ReLU after each.
#[derive(Clone, Debug)]
pub(super) struct Block {
    convs: [Conv; 3],
}

impl Block {
    pub(super) fn new(vb: VarBuilder, width: usize) -> Result<Self> {
        let relu = Conv2d { relu: true, ..SAME };
        let conv = |i: usize| Conv::new(vb.pp(format!("conv.{i}")), width, width, 3, true, relu);
        Ok(Self { convs: [conv(0)?, conv(2)?, conv(4)?] })
    }

    /// `(B, C, H, W)` → the same.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [first, second, third] = &self.convs;
        third.forward_onto(&second.forward(&first.forward(x)?)?, x)
    }
}
