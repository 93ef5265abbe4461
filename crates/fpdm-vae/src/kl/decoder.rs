//! Latents to pixels.

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
    up: Option<Conv>,
}

#[derive(Clone, Debug)]
pub(super) struct Decoder {
    conv_in: Conv,
    middle: Middle,
    levels: Vec<Level>,
    norm: GroupNorm,
    conv_out: Conv,
}

impl Decoder {
    pub(super) fn new(vb: VarBuilder, config: &KlConfig) -> Result<Self> {
        let (widths, groups) = (&config.block_out_channels, config.norm_num_groups);
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let mut levels = Vec::new();
        let mut from = last;
        for (i, &width) in widths.iter().rev().enumerate() {
            let vb = vb.pp(format!("up_blocks.{i}"));
            let mut resnets = Vec::new();
            for j in 0..=config.layers_per_block {
                let input = if j == 0 { from } else { width };
                resnets.push(Resnet::new(vb.pp(format!("resnets.{j}")), input, width, groups)?);
            }
            let double = Conv2d { upsample: 2, ..SAME };
            let up = match i + 1 < widths.len() {
                true => Some(Conv::new(vb.pp("upsamplers.0.conv"), width, width, 3, true, double)?),
                false => None,
            };
            levels.push(Level { resnets, up });
            from = width;
        }
        Ok(Self {
            conv_in: Conv::new(vb.pp("conv_in"), config.latent_channels, last, 3, true, SAME)?,
            middle: Middle::new(vb.pp("mid_block"), last, config)?,
            levels,
            norm: GroupNorm::new(vb.pp("conv_norm_out"), first, groups)?,
            conv_out: Conv::new(vb.pp("conv_out"), first, config.out_channels, 3, true, SAME)?,
        })
    }

    /// `(B, C, H, W)` → `(B, 3, F·H, F·W)`.
    pub(super) fn forward(&self, z: &Tensor) -> Result<Tensor> {
        self.rise(&self.middle(z)?, &mut Norms::own())
    }

    /// What happens at the size of the latents: `(B, C, H, W)` → `(B, C', H, W)`.
    pub(super) fn middle(&self, z: &Tensor) -> Result<Tensor> {
        self.middle.forward(&self.conv_in.forward(z)?)
    }

    /// The rest, which sees a neighbourhood of each pixel and otherwise only through its norms:
    /// `(B, C', H, W)` → `(B, 3, F·H, F·W)`.
    pub(super) fn rise(&self, x: &Tensor, norms: &mut Norms) -> Result<Tensor> {
        let mut x = x.clone();
        for level in &self.levels {
            for resnet in &level.resnets {
                x = resnet.forward(&x, norms)?;
            }
            if let Some(up) = &level.up {
                x = up.forward(&x)?;
            }
        }
        self.conv_out.forward(&self.norm.silu(&x, norms)?)
    }
}
