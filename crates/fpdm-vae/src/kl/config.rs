//! The `config.json` of diffusers' `AutoencoderKL`.

use fpdm_core::{Error, Result};
use serde::Deserialize;

/// The shape of an [`AutoencoderKl`](crate::AutoencoderKl), with the names and defaults of diffusers.
///
/// ```
/// let config = fpdm_vae::KlConfig::from_json(r#"{"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}"#)?;
/// assert_eq!((config.factor(), config.scaling_factor), (8, 0.18215));
/// # fpdm_vae::Result::<()>::Ok(())
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct KlConfig {
    /// Channels of the pixels that go in.
    pub in_channels: usize,
    /// Channels of the pixels that come out.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Width of each level, from the finest to the coarsest.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of a level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of every normalisation.
    pub norm_num_groups: usize,
    /// What latents are multiplied by, to have about unit variance.
    pub scaling_factor: f64,
    /// What is taken from them before.
    pub shift_factor: Option<f64>,
    /// Whether a 1×1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1×1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the coarsest level attends.
    pub mid_block_add_attention: bool,
    /// Kinds of the encoder's levels; only `DownEncoderBlock2D` is known.
    pub down_block_types: Option<Vec<String>>,
    /// Kinds of the decoder's levels; only `UpDecoderBlock2D` is known.
    pub up_block_types: Option<Vec<String>>,
    /// Only `silu` is known.
    pub act_fn: String,
    /// Means of the channels; not known, must be absent.
    pub latents_mean: Option<Vec<f64>>,
    /// Standard deviations of the channels; not known, must be absent.
    pub latents_std: Option<Vec<f64>>,
}

impl Default for KlConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![64],
            layers_per_block: 1,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
            down_block_types: None,
            up_block_types: None,
            act_fn: "silu".into(),
            latents_mean: None,
            latents_std: None,
        }
    }
}

impl KlConfig {
    /// Stable Diffusion 1: `stabilityai/sd-vae-ft-mse` and `-ema`. 83.7M parameters.
    pub fn stable_diffusion() -> Self {
        Self { block_out_channels: vec![128, 256, 512, 512], layers_per_block: 2, ..Self::default() }
    }

    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// [`Error::Config`] if it is no JSON, a field has the wrong type, or a value cannot be used.
    pub fn from_json(text: &str) -> Result<Self> {
        let config: Self = serde_json::from_str(text).map_err(|e| Error::config("config.json", e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// Pixels to a latent, along each side.
    pub fn factor(&self) -> usize {
        1 << self.block_out_channels.len().saturating_sub(1).min(16)
    }

    /// Whether the values can be used together.
    ///
    /// # Errors
    /// [`Error::Config`] with the field, the value and the rule.
    pub fn check(&self) -> Result<()> {
        let levels = self.block_out_channels.len();
        if !(1..=8).contains(&levels) {
            return Err(Error::config("block_out_channels", format!("{levels} levels; give 1 to 8 widths")));
        }
        for (field, value) in [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("latent_channels", self.latent_channels),
            ("norm_num_groups", self.norm_num_groups),
        ] {
            if value == 0 {
                return Err(Error::config(field, "0; give at least 1"));
            }
        }
        if let Some(width) =
            self.block_out_channels.iter().find(|&&w| w == 0 || !w.is_multiple_of(self.norm_num_groups))
        {
            let why = format!("width {width} is no positive multiple of `norm_num_groups` = {}", self.norm_num_groups);
            return Err(Error::config("block_out_channels", why));
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.) {
            let why = format!("{}; latents are multiplied by it, so give a positive number", self.scaling_factor);
            return Err(Error::config("scaling_factor", why));
        }
        if self.act_fn != "silu" && self.act_fn != "swish" {
            return Err(Error::config("act_fn", format!("`{}`; only `silu` is known", self.act_fn)));
        }
        for (field, kinds, known) in [
            ("down_block_types", &self.down_block_types, "DownEncoderBlock2D"),
            ("up_block_types", &self.up_block_types, "UpDecoderBlock2D"),
        ] {
            let Some(kinds) = kinds else { continue };
            if let Some(other) = kinds.iter().find(|kind| *kind != known) {
                return Err(Error::config(field, format!("`{other}`; only `{known}` is known")));
            }
            if kinds.len() != levels {
                let why = format!("{} kinds for {levels} levels of `block_out_channels`", kinds.len());
                return Err(Error::config(field, why));
            }
        }
        for (field, value) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            if value.is_some() {
                return Err(Error::config(field, "normalisation by channel is not known; use a codec without it"));
            }
        }
        Ok(())
    }
}
