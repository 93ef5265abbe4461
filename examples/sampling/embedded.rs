//! The weights that are part of the commands, for a first picture without a network or a GPU.
//!
//! `examples/assets/fpdm` is what `convert` writes of a `train --export`, `examples/assets/codec` what `train_codec
//! --export` writes, both in f16; `examples/assets/MODEL_CARD.md` says what they are and what they are not for.

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use fpdm_core::{Diffusion, LatentCodec, Pretrained};

/// What messages call them.
pub(crate) const ORIGIN: &str = "examples/assets";

/// The network, and what it was trained for.
pub(crate) fn weights() -> Result<Pretrained> {
    let weights: &'static [u8] = include_bytes!("../assets/fpdm/model.safetensors");
    let pretrained = Pretrained::from_bytes(ORIGIN, include_str!("../assets/fpdm/config.json"), weights)?;
    let diffusion = Diffusion::from_json(include_str!("../assets/fpdm/diffusion.json"))?;
    pretrained.with_diffusion(diffusion).context(ORIGIN)
}

/// The codec whose decoder was trained with it in mind.
pub(crate) fn codec(dtype: DType, device: &Device) -> Result<Box<dyn LatentCodec>> {
    let weights = include_bytes!("../assets/codec/diffusion_pytorch_model.safetensors");
    Ok(fpdm_vae::open_bytes(ORIGIN, include_str!("../assets/codec/config.json"), weights, dtype, device)?)
}
