//! The residual block.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use fpdm_core::Result;
use fpdm_kernels::Conv2d;

use crate::conv::{Conv, SAME};
use crate::group_norm::GroupNorm;
use crate::norms::Norms;

/// Two convolutions, each after norm and SiLU, and a shortcut.
#[derive(Clone, Debug)]
pub(super) struct Resnet {
    norm1: GroupNorm,
    conv1: Conv,
    norm2: GroupNorm,
    conv2: Conv,
    shortcut: Option<Conv>,
}

impl Resnet {
    pub(super) fn new(vb: VarBuilder, from: usize, to: usize, groups: usize) -> Result<Self> {
        let point = Conv2d { before: 0, after: 0, ..SAME };
        Ok(Self {
            norm1: GroupNorm::new(vb.pp("norm1"), from, groups)?,
            conv1: Conv::new(vb.pp("conv1"), from, to, 3, true, SAME)?,
            norm2: GroupNorm::new(vb.pp("norm2"), to, groups)?,
            conv2: Conv::new(vb.pp("conv2"), to, to, 3, true, SAME)?,
            shortcut: match from == to {
                true => None,
                false => Some(Conv::new(vb.pp("conv_shortcut"), from, to, 1, true, point)?),
            },
        })
    }

    /// `(B, C, H, W)` → `(B, C', H, W)`.
    pub(super) fn forward(&self, x: &Tensor, norms: &mut Norms) -> Result<Tensor> {
        let h = self.conv1.forward(&self.norm1.silu(x, norms)?)?;
        let h = self.norm2.silu(&h, norms)?;
        match &self.shortcut {
            Some(shortcut) => self.conv2.forward_onto(&h, &shortcut.forward(x)?),
            None => self.conv2.forward_onto(&h, x),
        }
    }
}
