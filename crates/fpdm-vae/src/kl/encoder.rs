//! Pixels to the parameters of a Gaussian.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use fpdm_core::Result;
use fpdm_kernels::Conv2d;

use super::config::KlConfig;
use super::middle::Middle;
use super::resnet::Resnet;
use crate::conv::{Conv, SAME};
use crate::group_norm::GroupNorm;
use crate::norms::Norms;

#[derive(Clone, Debug)]
struct Level {
    resnets: Vec<Resnet>,
    down: Option<Conv>,
}

#[derive(Clone, Debug)]
pub(super) struct Encoder {
    conv_in: Conv,
    levels: Vec<Level>,
    middle: Middle,
    norm: GroupNorm,
    conv_out: Conv,
}

impl Encoder {
    pub(super) fn new(vb: VarBuilder, config: &KlConfig) -> Result<Self> {
        let (widths, groups) = (&config.block_out_channels, config.norm_num_groups);
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let mut levels = Vec::new();
        let mut from = first;
        for (i, &width) in widths.iter().enumerate() {
            let vb = vb.pp(format!("down_blocks.{i}"));
            let mut resnets = Vec::new();
            for j in 0..config.layers_per_block {
                let input = if j == 0 { from } else { width };
                resnets.push(Resnet::new(vb.pp(format!("resnets.{j}")), input, width, groups)?);
            }
            // Only below and to the right, as the network was trained.
            let halve = Conv2d { stride: 2, before: 0, after: 1, ..SAME };
            let down = match i + 1 < widths.len() {
                true => Some(Conv::new(vb.pp("downsamplers.0.conv"), width, width, 3, true, halve)?),
                false => None,
            };
            levels.push(Level { resnets, down });
            from = width;
        }
        Ok(Self {
            conv_in: Conv::new(vb.pp("conv_in"), config.in_channels, first, 3, true, SAME)?,
            levels,
            middle: Middle::new(vb.pp("mid_block"), last, config)?,
            norm: GroupNorm::new(vb.pp("conv_norm_out"), last, groups)?,
            conv_out: Conv::new(vb.pp("conv_out"), last, 2 * config.latent_channels, 3, true, SAME)?,
        })
    }

    /// `(B, 3, F·H, F·W)` → `(B, 2C, H, W)`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.middle(&self.fall(x, &mut Norms::own())?)
    }

    /// Down to the size of the latents, which sees a neighbourhood of each pixel and otherwise only through its norms:
    /// `(B, 3, F·H, F·W)` → `(B, C', H, W)`.
    pub(super) fn fall(&self, x: &Tensor, norms: &mut Norms) -> Result<Tensor> {
        let mut x = self.conv_in.forward(x)?;
        for level in &self.levels {
            for resnet in &level.resnets {
                x = resnet.forward(&x, norms)?;
            }
            if let Some(down) = &level.down {
                x = down.forward(&x)?;
            }
        }
        Ok(x)
    }

    /// The rest: `(B, C', H, W)` → `(B, 2C, H, W)`.
    pub(super) fn middle(&self, x: &Tensor) -> Result<Tensor> {
        self.conv_out.forward(&self.norm.silu(&self.middle.forward(x)?, &mut Norms::own())?)
    }
}
