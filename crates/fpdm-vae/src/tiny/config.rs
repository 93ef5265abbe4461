//! The `config.json` of diffusers' `AutoencoderTiny`.

use std::collections::HashMap;

use candle_core::Tensor;
use fpdm_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::names::infer;

/// The shape of a [`TinyAutoencoder`](crate::TinyAutoencoder), with the names and defaults of diffusers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TinyConfig {
    /// Channels of the pixels that go in.
    pub in_channels: usize,
    /// Channels of the pixels that come out.
    pub out_channels: usize,
    /// Channels of the latents: 4, or 16 for the siblings of newer models.
    pub latent_channels: usize,
    /// Width of each level of the encoder, from the finest to the coarsest; all equal.
    pub encoder_block_out_channels: Vec<usize>,
    /// Width of each level of the decoder; all equal.
    pub decoder_block_out_channels: Vec<usize>,
    /// Blocks of each level of the encoder, from the finest to the coarsest.
    pub num_encoder_blocks: Vec<usize>,
    /// Blocks of each level of the decoder, from the coarsest to the finest.
    pub num_decoder_blocks: Vec<usize>,
    /// Only `relu` is known.
    pub act_fn: String,
    /// Only `nearest` is known.
    pub upsample_fn: String,
    /// How much finer the decoder's next level is.
    pub upsampling_scaling_factor: usize,
    /// What latents are multiplied by.
    pub scaling_factor: f64,
    /// What is taken from them before.
    pub shift_factor: f64,
}

impl Default for TinyConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            encoder_block_out_channels: vec![64; 4],
            decoder_block_out_channels: vec![64; 4],
            num_encoder_blocks: vec![1, 3, 3, 3],
            num_decoder_blocks: vec![3, 3, 3, 1],
            act_fn: "relu".into(),
            upsample_fn: "nearest".into(),
            upsampling_scaling_factor: 2,
            scaling_factor: 1.,
            shift_factor: 0.,
        }
    }
}

impl TinyConfig {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// [`Error::Config`] if it is no JSON, a field has the wrong type, or a value cannot be used.
    pub fn from_json(text: &str) -> Result<Self> {
        let config: Self = serde_json::from_str(text).map_err(|e| Error::config("config.json", e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// The `config.json` that diffusers and [`open`](crate::open) read.
    ///
    /// ```
    /// use fpdm_vae::TinyConfig;
    ///
    /// let config = TinyConfig { scaling_factor: 0.5, ..TinyConfig::default() };
    /// assert_eq!(TinyConfig::from_json(&config.to_json())?, config);
    /// # fpdm_vae::Result::<()>::Ok(())
    /// ```
    pub fn to_json(&self) -> String {
        let mut json = serde_json::json!(self);
        json["_class_name"] = "AutoencoderTiny".into();
        format!("{json:#}\n")
    }

    /// The config of a network with these tensors, diffusers names, as far as they tell.
    pub fn of_tensors(tensors: &HashMap<String, Tensor>) -> Self {
        infer(tensors)
    }

    /// Pixels to a latent, along each side.
    pub fn factor(&self) -> usize {
        1 << self.num_encoder_blocks.len().saturating_sub(1).min(16)
    }

    /// Whether the values can be used together.
    ///
    /// # Errors
    /// [`Error::Config`] with the field, the value and the rule.
    pub fn check(&self) -> Result<()> {
        for (field, value) in [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("latent_channels", self.latent_channels),
        ] {
            if value == 0 {
                return Err(Error::config(field, "0; give at least 1"));
            }
        }
        for (field, value, known) in [("act_fn", &self.act_fn, "relu"), ("upsample_fn", &self.upsample_fn, "nearest")] {
            if value != known {
                return Err(Error::config(field, format!("`{value}`; only `{known}` is known")));
            }
        }
        if self.upsampling_scaling_factor != 2 {
            let why = format!("{}; only 2 undoes the encoder's halving", self.upsampling_scaling_factor);
            return Err(Error::config("upsampling_scaling_factor", why));
        }
        for (field, widths, blocks) in [
            ("encoder_block_out_channels", &self.encoder_block_out_channels, &self.num_encoder_blocks),
            ("decoder_block_out_channels", &self.decoder_block_out_channels, &self.num_decoder_blocks),
        ] {
            if widths.is_empty() || widths.len() > 8 || widths.len() != blocks.len() {
                let why =
                    format!("{} widths for {} numbers of blocks; give 1 to 8 of each", widths.len(), blocks.len());
                return Err(Error::config(field, why));
            }
            if widths[0] == 0 || widths.iter().any(|w| *w != widths[0]) {
                return Err(Error::config(field, format!("{widths:?}; all levels must have the same positive width")));
            }
        }
        if self.num_encoder_blocks.len() != self.num_decoder_blocks.len() {
            let (got, expected) = (self.num_decoder_blocks.len(), self.num_encoder_blocks.len());
            return Err(Error::config("num_decoder_blocks", format!("{got} levels, the encoder has {expected}")));
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.) {
            let why = format!("{}; latents are multiplied by it, so give a positive number", self.scaling_factor);
            return Err(Error::config("scaling_factor", why));
        }
        Ok(())
    }
}
