//! The coarsest level of encoder and decoder.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use fpdm_core::Result;

use super::attention::Attention;
use super::config::KlConfig;
use super::resnet::Resnet;
use crate::norms::Norms;

/// A residual block, attention, a residual block.
#[derive(Clone, Debug)]
pub(super) struct Middle {
    first: Resnet,
    attention: Option<Attention>,
    last: Resnet,
}

impl Middle {
    pub(super) fn new(vb: VarBuilder, width: usize, config: &KlConfig) -> Result<Self> {
        let groups = config.norm_num_groups;
        Ok(Self {
            first: Resnet::new(vb.pp("resnets.0"), width, width, groups)?,
            attention: match config.mid_block_add_attention {
                true => Some(Attention::new(vb.pp("attentions.0"), width, groups)?),
                false => None,
            },
            last: Resnet::new(vb.pp("resnets.1"), width, width, groups)?,
        })
    }

    /// `(B, C, H, W)` → the same.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.first.forward(x, &mut Norms::own())?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.last.forward(&x, &mut Norms::own())
    }
}
