//! What a network is made of, as data: `config.json`.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How the depth of a network is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// Pre-layers, an implicit group that is solved, post-layers.
    Fpdm,
    /// A stack of [`Config::depth`] blocks.
    Dit,
}

/// What the network is conditioned on besides time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Labels {
    /// Nothing: `y` is ignored and there is no label embedder.
    None,
    /// Class numbers `0..n`, `y` of shape `(B)`; the number `n` is the null class of classifier-free guidance. The
    /// published unconditional models are `Classes(1)`.
    Classes(usize),
    /// Continuous vectors of this length, `y` of shape `(B, L)`; the zero vector is the null label.
    Vector(usize),
}

/// The published widths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Width 384, 6 heads, DiT depth 12.
    S,
    /// Width 768, 12 heads, DiT depth 12.
    B,
    /// Width 1024, 16 heads, DiT depth 24.
    L,
    /// Width 1152, 16 heads, DiT depth 28.
    XL,
}

impl Size {
    /// `(hidden_size, num_heads, DiT depth)`, Peebles and Xie 2023 (arXiv 2212.09748), Table 1.
    pub fn dimensions(self) -> (usize, usize, usize) {
        match self {
            Size::S => (384, 6, 12),
            Size::B => (768, 12, 12),
            Size::L => (1024, 16, 24),
            Size::XL => (1152, 16, 28),
        }
    }
}

/// The settings of a network. Unknown fields are refused, missing ones take the value of [`Config::default`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Implicit or explicit depth.
    pub architecture: Architecture,
    /// Height and width of the latents, each a multiple of `patch_size`.
    pub input_size: [usize; 2],
    /// Side of the square patches that become tokens.
    pub patch_size: usize,
    /// Channels C of the latents.
    pub in_channels: usize,
    /// Width D of a token.
    pub hidden_size: usize,
    /// Attention heads; a divisor of `hidden_size`.
    pub num_heads: usize,
    /// Width of a block's MLP over D.
    pub mlp_ratio: f64,
    /// Blocks before the implicit part (FPDM).
    pub pre_depth: usize,
    /// Blocks that one application of the map runs (FPDM); at least 1.
    pub group: usize,
    /// Blocks after the implicit part (FPDM).
    pub post_depth: usize,
    /// Blocks of the stack (DiT).
    pub depth: usize,
    /// Labels.
    pub labels: Labels,
    /// Whether the output has 2 C channels, the second half for the variance.
    pub learn_sigma: bool,
    /// Whether pre-, post- and final layer are told the time (FPDM). The published weights are not.
    pub pre_post_timestep_conditioning: bool,
    /// The frequencies of the time embedding are `10000^(-i / (128 - shift))`: 0 as published, 1 in the diffusers
    /// port of DiT.
    pub timestep_frequency_shift: f64,
    /// Epsilon of the layer norm before a block's MLP: 1e-6 as published, 1e-5 in the diffusers port. All other layer
    /// norms use 1e-6.
    pub mlp_norm_eps: f64,
    /// Whether every block embeds time and label by itself (DiT): the diffusers port, whose first embedding also
    /// serves the final layer.
    pub block_embedders: bool,
}

impl Default for Config {
    /// FPDM-S/2 on 32×32 latents with the published settings.
    fn default() -> Self {
        Self::fpdm(Size::S, 2)
    }
}

impl Config {
    /// FPDM of a published size: one block before, one implicit, one after, 1000 classes, 32×32×4 latents.
    pub fn fpdm(size: Size, patch_size: usize) -> Self {
        let (hidden_size, num_heads, _) = size.dimensions();
        Self {
            architecture: Architecture::Fpdm,
            input_size: [32, 32],
            patch_size,
            in_channels: 4,
            hidden_size,
            num_heads,
            mlp_ratio: 4.0,
            pre_depth: 1,
            group: 1,
            post_depth: 1,
            depth: 0,
            labels: Labels::Classes(1000),
            learn_sigma: true,
            pre_post_timestep_conditioning: false,
            timestep_frequency_shift: 0.0,
            mlp_norm_eps: 1e-6,
            block_embedders: false,
        }
    }

    /// DiT of a published size: 1000 classes, 32×32×4 latents.
    pub fn dit(size: Size, patch_size: usize) -> Self {
        let (_, _, depth) = size.dimensions();
        Self {
            architecture: Architecture::Dit,
            pre_depth: 0,
            group: 0,
            post_depth: 0,
            depth,
            ..Self::fpdm(size, patch_size)
        }
    }

    /// Reads and checks the text of a `config.json`.
    ///
    /// # Errors
    /// [`Error::Config`] with the position of a syntax error, an unknown field or a value out of range.
    pub fn from_json(text: &str) -> Result<Self> {
        let config: Self = serde_json::from_str(text).map_err(|e| Error::config("config.json", e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// The text of a `config.json`.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a config has no value that JSON cannot hold")
    }

    /// Tokens along height and width.
    pub fn grid(&self) -> (usize, usize) {
        (self.input_size[0] / self.patch_size, self.input_size[1] / self.patch_size)
    }

    /// Tokens T of one image.
    pub fn tokens(&self) -> usize {
        let (h, w) = self.grid();
        h * w
    }

    /// Channels of the output: C, or 2 C with a learned variance.
    pub fn out_channels(&self) -> usize {
        if self.learn_sigma { 2 * self.in_channels } else { self.in_channels }
    }

    /// Width of a block's MLP: `mlp_ratio` of D, rounded down.
    pub fn mlp_hidden(&self) -> usize {
        // A ratio that was read off a width must give that width back.
        (self.hidden_size as f64 * self.mlp_ratio + 1e-6) as usize
    }

    /// Refuses settings that no network can be built from.
    ///
    /// # Errors
    /// [`Error::Config`] with the field, its value and the fix.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("patch_size", self.patch_size),
            ("in_channels", self.in_channels),
            ("hidden_size", self.hidden_size),
            ("num_heads", self.num_heads),
            ("input_size[0]", self.input_size[0]),
            ("input_size[1]", self.input_size[1]),
        ];
        for (field, value) in positive {
            if value == 0 || value > 1 << 20 {
                return Err(Error::config(field, format!("{value} is out of range; use 1 to {}", 1 << 20)));
            }
        }
        for (field, value) in [("pre_depth", self.pre_depth), ("post_depth", self.post_depth), ("depth", self.depth)] {
            if value > 4096 {
                return Err(Error::config(field, format!("{value} blocks are out of range; use at most 4096")));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_heads) {
            return Err(Error::config(
                "num_heads",
                format!("{} heads do not divide hidden_size {}; use a divisor", self.num_heads, self.hidden_size),
            ));
        }
        if !self.hidden_size.is_multiple_of(4) {
            return Err(Error::config(
                "hidden_size",
                format!("{} is no multiple of 4, which the position embedding needs", self.hidden_size),
            ));
        }
        for (i, name) in ["height", "width"].iter().enumerate() {
            if !self.input_size[i].is_multiple_of(self.patch_size) {
                return Err(Error::config(
                    format!("input_size[{i}]"),
                    format!("{name} {} is no multiple of patch_size {}", self.input_size[i], self.patch_size),
                ));
            }
        }
        if !(self.mlp_ratio.is_finite() && (1.0 / 64.0..=64.0).contains(&self.mlp_ratio) && self.mlp_hidden() > 0) {
            return Err(Error::config("mlp_ratio", format!("{} is out of range; the papers use 4", self.mlp_ratio)));
        }
        if !(self.mlp_norm_eps > 0.0 && self.mlp_norm_eps < 1.0) {
            return Err(Error::config("mlp_norm_eps", format!("{} is not in (0, 1); use 1e-6", self.mlp_norm_eps)));
        }
        if !(0.0..128.0).contains(&self.timestep_frequency_shift) {
            return Err(Error::config(
                "timestep_frequency_shift",
                format!("{} is not in [0, 128); use 0, or 1 for diffusers", self.timestep_frequency_shift),
            ));
        }
        match self.labels {
            Labels::Classes(n) | Labels::Vector(n) if n == 0 || n > 1 << 24 => {
                return Err(Error::config("labels", format!("{n} is out of range; for no labels use \"none\"")));
            }
            Labels::None if self.architecture == Architecture::Fpdm && !self.pre_post_timestep_conditioning => {
                // The pre- and post-layers would be conditioned on nothing and half their parameters dead.
                return Err(Error::config(
                    "labels",
                    "\"none\" leaves the pre- and post-layers unconditioned; set pre_post_timestep_conditioning to \
                     true, or use {\"classes\": 1} as the published unconditional models do",
                ));
            }
            _ => {}
        }
        match self.architecture {
            Architecture::Fpdm if self.group == 0 => {
                Err(Error::config("group", "0 blocks cannot be iterated; use 1 or more"))
            }
            Architecture::Fpdm if self.group > 4096 => {
                Err(Error::config("group", format!("{} blocks are out of range; use at most 4096", self.group)))
            }
            _ if self.block_embedders && (self.architecture != Architecture::Dit || self.depth == 0) => {
                Err(Error::config("block_embedders", "true is for a dit with blocks; use false"))
            }
            Architecture::Fpdm if self.depth != 0 => Err(Error::config(
                "depth",
                format!("{} is set, but an fpdm has pre_depth, group, post_depth", self.depth),
            )),
            Architecture::Dit if self.pre_depth + self.post_depth + self.group != 0 => {
                Err(Error::config("pre_depth", "pre_depth, group and post_depth belong to an fpdm; a dit has depth"))
            }
            _ => Ok(()),
        }
    }
}
