//! The tiny autoencoder.

mod block;
mod config;
mod names;

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use fpdm_core::{LatentCodec, Moments, Result};
use fpdm_kernels::Conv2d;

pub use config::TinyConfig;

use crate::check::{pictures, same_type};
use crate::conv::{Conv, SAME};
use crate::strict;
use block::Block;

/// TAESD and its siblings: a small convolutional autoencoder that reads and writes the latents of a large one.
///
/// Every step is differentiable, in pixels, latents and weights, so it can be trained. It is certain: the standard
/// deviation of [`LatentCodec::encode`] is 0.
///
/// # Shapes
///
/// Pixels `(B, 3, F·H, F·W)` in [-1, 1], latents `(B, C, H, W)`; `F` is [`TinyConfig::factor`], 8 as published.
///
/// # Reference
///
/// Bohan 2023, TAESD, github.com/madebyollin/taesd.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::VarMap;
/// use fpdm_vae::{LatentCodec, TinyAutoencoder, TinyConfig, fresh};
///
/// let vars = VarMap::new();
/// let config = TinyConfig { num_encoder_blocks: vec![1, 1], num_decoder_blocks: vec![1, 1],
///     encoder_block_out_channels: vec![8; 2], decoder_block_out_channels: vec![8; 2], ..TinyConfig::default() };
/// let codec = TinyAutoencoder::new(config, fresh(&vars, 0, DType::F32, &Device::Cpu))?;
/// let x = Tensor::zeros((1, 3, 16, 16), DType::F32, &Device::Cpu)?;
/// let y = codec.decode(&codec.encode(&x)?.mean)?;
/// let gradients = (y - x)?.sqr()?.mean_all()?.backward()?;
/// assert!(vars.all_vars().iter().all(|v| gradients.get(v).is_some()));
/// # fpdm_vae::Result::<()>::Ok(())
/// ```
#[derive(Clone, Debug)]
pub struct TinyAutoencoder {
    config: TinyConfig,
    dtype: DType,
    encoder: Vec<Layer>,
    decoder: Vec<Layer>,
}

#[derive(Clone, Debug)]
enum Layer {
    Conv(Conv),
    Block(Block),
}

impl TinyAutoencoder {
    /// The network with the tensors that `vb` gives, diffusers names.
    ///
    /// # Errors
    /// [`Error::Config`](fpdm_core::Error::Config) if the config cannot be used; what `vb` says of missing tensors.
    pub fn new(config: TinyConfig, vb: VarBuilder) -> Result<Self> {
        config.check()?;
        Ok(Self {
            encoder: encoder(vb.pp("encoder.layers"), &config)?,
            decoder: decoder(vb.pp("decoder.layers"), &config)?,
            dtype: vb.dtype(),
            config,
        })
    }

    /// The network with the tensors of a diffusers file. `origin` is for messages.
    ///
    /// # Errors
    /// [`Error::Weights`](fpdm_core::Error::Weights) with every missing, misshapen and unknown tensor.
    pub fn from_tensors(
        config: TinyConfig,
        origin: &str,
        tensors: HashMap<String, Tensor>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        strict::build(origin, tensors, dtype, device, |vb| Self::new(config, vb))
    }

    /// The network with the tensors of the two original files; their shapes give the config.
    ///
    /// # Errors
    /// [`Error::Weights`](fpdm_core::Error::Weights) with every missing, misshapen and unknown tensor.
    pub fn from_original(
        origin: &str,
        encoder: HashMap<String, Tensor>,
        decoder: HashMap<String, Tensor>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let tensors = names::from_original(origin, encoder, decoder)?;
        Self::from_tensors(TinyConfig::of_tensors(&tensors), origin, tensors, dtype, device)
    }

    /// What it was built from.
    pub fn config(&self) -> &TinyConfig {
        &self.config
    }
}

fn encoder(vb: VarBuilder, config: &TinyConfig) -> Result<Vec<Layer>> {
    let width = config.encoder_block_out_channels[0];
    let mut layers = Vec::new();
    for (level, &blocks) in config.num_encoder_blocks.iter().enumerate() {
        let next = vb.pp(layers.len());
        layers.push(Layer::Conv(match level {
            0 => Conv::new(next, config.in_channels, width, 3, true, SAME)?,
            _ => Conv::new(next, width, width, 3, false, Conv2d { stride: 2, ..SAME })?,
        }));
        for _ in 0..blocks {
            layers.push(Layer::Block(Block::new(vb.pp(layers.len()), width)?));
        }
    }
    let last = Conv::new(vb.pp(layers.len()), width, config.latent_channels, 3, true, SAME)?;
    layers.push(Layer::Conv(last));
    Ok(layers)
}

fn decoder(vb: VarBuilder, config: &TinyConfig) -> Result<Vec<Layer>> {
    let width = config.decoder_block_out_channels[0];
    let relu = Conv2d { relu: true, ..SAME };
    let mut layers = vec![Layer::Conv(Conv::new(vb.pp(0), config.latent_channels, width, 3, true, relu)?)];
    // The published numbering counts activations and upsampling, which are part of a convolution here.
    let mut number = 2;
    let levels = config.num_decoder_blocks.len();
    for (level, &blocks) in config.num_decoder_blocks.iter().enumerate() {
        for _ in 0..blocks {
            layers.push(Layer::Block(Block::new(vb.pp(number), width)?));
            number += 1;
        }
        layers.push(Layer::Conv(match level + 1 == levels {
            true => Conv::new(vb.pp(number), width, config.out_channels, 3, true, SAME)?,
            false => Conv::new(vb.pp(number + 1), width, width, 3, false, Conv2d { upsample: 2, ..SAME })?,
        }));
        number += 2;
    }
    Ok(layers)
}

fn run(layers: &[Layer], x: Tensor) -> Result<Tensor> {
    layers.iter().try_fold(x, |x, layer| match layer {
        Layer::Conv(conv) => conv.forward(&x),
        Layer::Block(block) => block.forward(&x),
    })
}

impl LatentCodec for TinyAutoencoder {
    fn encode(&self, pixels: &Tensor) -> Result<Moments> {
        let what = "TinyAutoencoder::encode: pixels";
        pictures(what, pixels, self.config.in_channels, self.config.factor())?;
        same_type(what, pixels)?;
        // The network sees [0, 1].
        let x = pixels.to_dtype(self.dtype)?.contiguous()?.affine(0.5, 0.5)?;
        let z = run(&self.encoder, x)?.to_dtype(pixels.dtype())?;
        let mean = ((z - self.config.shift_factor)? * self.config.scaling_factor)?;
        Ok(Moments { std: mean.zeros_like()?.detach(), mean })
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let what = "TinyAutoencoder::decode: latents";
        pictures(what, latents, self.config.latent_channels, 1)?;
        same_type(what, latents)?;
        let z = latents.to_dtype(self.dtype)?.contiguous()?;
        let z = z.affine(1. / self.config.scaling_factor, self.config.shift_factor)?;
        // A soft clamp to [-3, 3], where latents live.
        let z = ((z / 3.)?.tanh()? * 3.)?;
        Ok(run(&self.decoder, z)?.affine(2., -1.)?.to_dtype(latents.dtype())?)
    }
}
