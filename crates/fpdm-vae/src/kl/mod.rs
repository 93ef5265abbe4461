//! The autoencoder of Stable Diffusion.

mod attention;
mod config;
mod decoder;
mod encoder;
mod middle;
mod names;
mod posterior;
mod resnet;
mod tiled;

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use fpdm_core::{LatentCodec, Moments, Result};
use fpdm_kernels::Conv2d;

pub use config::KlConfig;
pub use posterior::Posterior;
pub use tiled::TiledKl;

use crate::check::{pictures, same_type};
use crate::conv::{Conv, SAME};
use crate::strict;
use decoder::Decoder;
use encoder::Encoder;

/// The variational autoencoder of Stable Diffusion 1 and its relatives, in the layout of diffusers' `AutoencoderKL`.
///
/// Latents outside of it have about unit variance: `(z - shift)·scale`, with the factors of the config.
///
/// # Shapes
///
/// Pixels `(B, 3, F·H, F·W)` in [-1, 1], latents `(B, C, H, W)`; `F` is [`KlConfig::factor`], 8 for Stable Diffusion.
/// Decoded pixels may leave [-1, 1] a little, as the published network's do.
///
/// # Cost
///
/// Memory grows with the picture: 0.22 GB beside 0.34 GB of weights for a decode by Stable Diffusion's at 256×256 in `f32`. [`TiledKl`]
/// and [`Sliced`](crate::Sliced) bound it.
///
/// # Reference
///
/// Rombach et al. 2022, arXiv 2112.10752, section 3.1.
#[derive(Clone, Debug)]
pub struct AutoencoderKl {
    config: KlConfig,
    dtype: DType,
    encoder: Encoder,
    quant: Option<Conv>,
    post_quant: Option<Conv>,
    decoder: Decoder,
}

impl AutoencoderKl {
    /// The network with the tensors that `vb` gives: present diffusers names.
    ///
    /// # Errors
    /// [`Error::Config`](fpdm_core::Error::Config) if the config cannot be used; what `vb` says of missing tensors.
    pub fn new(config: KlConfig, vb: VarBuilder) -> Result<Self> {
        config.check()?;
        let point = Conv2d { before: 0, after: 0, ..SAME };
        let quant = |name: &str, channels: usize, used: bool| match used {
            true => Conv::new(vb.pp(name), channels, channels, 1, true, point).map(Some),
            false => Ok(None),
        };
        Ok(Self {
            encoder: Encoder::new(vb.pp("encoder"), &config)?,
            quant: quant("quant_conv", 2 * config.latent_channels, config.use_quant_conv)?,
            post_quant: quant("post_quant_conv", config.latent_channels, config.use_post_quant_conv)?,
            decoder: Decoder::new(vb.pp("decoder"), &config)?,
            dtype: vb.dtype(),
            config,
        })
    }

    /// The network with the tensors of a file, in old or new diffusers names. `origin` is for messages.
    ///
    /// # Errors
    /// [`Error::Weights`](fpdm_core::Error::Weights) with every missing, misshapen and unknown tensor.
    pub fn from_tensors(
        config: KlConfig,
        origin: &str,
        tensors: HashMap<String, Tensor>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        strict::build(origin, names::modern(tensors)?, dtype, device, |vb| Self::new(config, vb))
    }

    /// What it was built from.
    pub fn config(&self) -> &KlConfig {
        &self.config
    }

    /// The Gaussian of the latents, in the network's own scale.
    ///
    /// # Errors
    /// [`Error::Shape`](fpdm_core::Error::Shape) if `pixels` does not fit.
    pub fn posterior(&self, pixels: &Tensor) -> Result<Posterior> {
        self.posterior_of(&self.encoder.forward(&self.pixels(pixels)?)?, pixels.dtype())
    }

    /// What the encoder takes.
    fn pixels(&self, pixels: &Tensor) -> Result<Tensor> {
        let what = "AutoencoderKl::encode: pixels";
        pictures(what, pixels, self.config.in_channels, self.config.factor())?;
        same_type(what, pixels)?;
        Ok(pixels.to_dtype(self.dtype)?.contiguous()?)
    }

    /// From what the encoder says, `(B, 2C, H, W)`.
    fn posterior_of(&self, x: &Tensor, dtype: DType) -> Result<Posterior> {
        let x = match &self.quant {
            Some(quant) => quant.forward(x)?,
            None => x.clone(),
        };
        Posterior::new(&x.to_dtype(dtype)?)
    }

    fn moments(&self, posterior: &Posterior) -> Result<Moments> {
        let scale = self.config.scaling_factor;
        Ok(Moments { mean: ((&posterior.mean - self.shift())? * scale)?, std: (posterior.std()? * scale)? })
    }

    /// What the decoder takes.
    fn latents(&self, latents: &Tensor) -> Result<Tensor> {
        let what = "AutoencoderKl::decode: latents";
        pictures(what, latents, self.config.latent_channels, 1)?;
        same_type(what, latents)?;
        let z = latents.to_dtype(self.dtype)?.contiguous()?.affine(1. / self.config.scaling_factor, self.shift())?;
        match &self.post_quant {
            Some(post_quant) => post_quant.forward(&z),
            None => Ok(z),
        }
    }

    fn shift(&self) -> f64 {
        self.config.shift_factor.unwrap_or(0.)
    }
}

impl LatentCodec for AutoencoderKl {
    fn encode(&self, pixels: &Tensor) -> Result<Moments> {
        self.moments(&self.posterior(pixels)?)
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        Ok(self.decoder.forward(&self.latents(latents)?)?.to_dtype(latents.dtype())?)
    }
}
