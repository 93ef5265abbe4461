//! Attention over the pixels of the coarsest level.

use candle_core::{D, DType, Tensor};
use candle_nn::{Init, VarBuilder, ops};
use fpdm_core::Result;

use crate::group_norm::GroupNorm;
use crate::norms::Norms;

/// Scores held at a time: queries are taken in blocks, so that a large picture needs no square of its size.
const SCORES: usize = 1 << 24;

/// One head as wide as the level, after a norm, onto a residual.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    norm: GroupNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
}

#[derive(Clone, Debug)]
struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    fn new(vb: VarBuilder, width: usize) -> Result<Self> {
        let bound = 1. / (width as f64).sqrt();
        let init = Init::Uniform { lo: -bound, up: bound };
        let weight = vb.get_with_hints((width, width), "weight", init)?;
        Ok(Self { weight, bias: vb.get_with_hints(width, "bias", init)? })
    }

    /// `(B, N, C)` → the same.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, n, c) = x.dims3()?;
        let y = x.reshape((b * n, c))?.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)?;
        Ok(y.reshape((b, n, c))?)
    }
}

impl Attention {
    pub(super) fn new(vb: VarBuilder, width: usize, groups: usize) -> Result<Self> {
        Ok(Self {
            norm: GroupNorm::new(vb.pp("group_norm"), width, groups)?,
            query: Linear::new(vb.pp("to_q"), width)?,
            key: Linear::new(vb.pp("to_k"), width)?,
            value: Linear::new(vb.pp("to_v"), width)?,
            out: Linear::new(vb.pp("to_out.0"), width)?,
        })
    }

    /// `(B, C, H, W)` → the same.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, c, h, w) = x.dims4()?;
        let tokens = self.norm.forward(x, &mut Norms::own())?.reshape((b, c, h * w))?.transpose(1, 2)?.contiguous()?; // (B, N, C)
        let query = (self.query.forward(&tokens)? * (c as f64).powf(-0.5))?;
        let key = self.key.forward(&tokens)?.transpose(1, 2)?.contiguous()?; // (B, C, N)
        let value = self.value.forward(&tokens)?;
        let block = (SCORES / (b * h * w)).clamp(1, h * w);
        let mut mixed = Vec::new();
        for start in (0..h * w).step_by(block) {
            let rows = query.narrow(1, start, block.min(h * w - start))?.contiguous()?;
            mixed.push(softmax(&rows.matmul(&key)?)?.matmul(&value)?);
        }
        let y = self.out.forward(&Tensor::cat(&mixed, 1)?)?;
        Ok((y.transpose(1, 2)?.reshape((b, c, h, w))? + x)?)
    }
}

/// Over the last dimension, in at least `f32`.
fn softmax(scores: &Tensor) -> Result<Tensor> {
    let within = match scores.dtype() {
        DType::F16 | DType::BF16 => DType::F32,
        dtype => dtype,
    };
    let wide = scores.to_dtype(within)?;
    // Candle's fused one drops the gradient without a word.
    let y = if wide.track_op() { ops::softmax(&wide, D::Minus1)? } else { ops::softmax_last_dim(&wide)? };
    Ok(y.to_dtype(scores.dtype())?)
}
