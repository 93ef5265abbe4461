//! What the shapes of the tensors say about the network.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::container::broken;
use super::layout::Layout;
use super::open::Checkpoint;
use crate::dit::{Architecture, Config, Labels};
use crate::{Error, Result};

/// The settings of a network, as far as its tensors tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Hints {
    /// Whether there is an implicit part.
    pub implicit: bool,
    /// Height and width of the latents: from `pos_embed`, if it is stored and square; else to be filled in.
    pub input_size: Option<[usize; 2]>,
    /// Side of a patch.
    pub patch_size: usize,
    /// Channels of the latents.
    pub in_channels: usize,
    /// Width of a token.
    pub hidden_size: usize,
    /// Attention heads: known for the published widths only; else to be filled in.
    pub num_heads: Option<usize>,
    /// Width of a block's MLP over that of a token.
    pub mlp_ratio: f64,
    /// Blocks before the implicit part.
    pub pre_depth: usize,
    /// Blocks of the implicit part.
    pub group: usize,
    /// Blocks after the implicit part.
    pub post_depth: usize,
    /// Blocks of a network without an implicit part.
    pub depth: usize,
    /// Labels; a table has one row more than there are classes.
    pub labels: Labels,
    /// Whether the output has twice the channels.
    pub learn_sigma: bool,
    /// Whether pre-, post- and final layer are told the time: no tensor says, the published weights are not.
    pub pre_post_timestep_conditioning: bool,
    /// By layout: 1 in diffusers, else 0.
    pub timestep_frequency_shift: f64,
    /// By layout: 1e-5 in diffusers, else 1e-6.
    pub mlp_norm_eps: f64,
    /// Whether every block has embedders of its own.
    pub block_embedders: bool,
}

impl Checkpoint {
    /// What the shapes say.
    ///
    /// # Errors
    /// [`Error::Weights`] if tensors that every network has are missing or have impossible shapes.
    pub fn hints(&self) -> Result<Hints> {
        let shapes = self.shapes();
        let bad = |why: String| broken(self.origin(), why);
        let find = |name: &str| shapes.get(name).ok_or_else(|| bad(format!("{name} is missing")));
        let &[hidden_size, in_channels, patch_size, width] = find("x_embedder.proj.weight")?.as_slice() else {
            return Err(bad("x_embedder.proj.weight: expected 4 dimensions".into()));
        };
        if hidden_size == 0 || in_channels == 0 || patch_size == 0 || patch_size != width {
            return Err(bad(format!("x_embedder.proj.weight: patches of {patch_size}×{width} are not square")));
        }
        let blocks = |prefix: &str| {
            let number = |name: &String| name.strip_prefix(prefix)?.split('.').next()?.parse::<usize>().ok();
            let numbers: BTreeSet<usize> = shapes.keys().filter_map(number).collect();
            match numbers.iter().enumerate().find(|(expected, got)| expected != *got) {
                Some((missing, _)) => Err(bad(format!("{prefix}{missing} is missing, but there are blocks after it"))),
                None => Ok(numbers.len()),
            }
        };
        let (pre_depth, post_depth, depth) = (blocks("blocks_pre.")?, blocks("blocks_post.")?, blocks("blocks.")?);
        let implicit = self.layout() == Layout::Fpdm;
        let group = if implicit { blocks("blocks_fixed_point.")?.max(1) } else { 0 };
        let block_embedders = shapes.contains_key("blocks.0.t_embedder.mlp.0.weight");
        let prefix = if block_embedders { "blocks.0." } else { "" };
        let labels = match (
            shapes.get(&format!("{prefix}y_embedder.embedding_table.weight")).map(Vec::as_slice),
            shapes.get(&format!("{prefix}y_embedder.mlp.0.weight")).map(Vec::as_slice),
        ) {
            (Some(&[rows, _]), _) if rows > 1 => Labels::Classes(rows - 1),
            (_, Some(&[_, length])) => Labels::Vector(length),
            _ => Labels::None,
        };
        let fc1 = shapes.iter().find(|(name, _)| name.ends_with(".mlp.fc1.weight"));
        let mlp_ratio = fc1.and_then(|(_, shape)| shape.first()).map_or(4.0, |&d| d as f64 / hidden_size as f64);
        let out = find("final_layer.linear.weight")?.first().copied().unwrap_or(0);
        let per_patch = patch_size.saturating_mul(patch_size).saturating_mul(in_channels);
        if out != per_patch && out != per_patch.saturating_mul(2) {
            return Err(bad(format!("final_layer.linear.weight: expected {per_patch} rows or twice that, got {out}")));
        }
        let side = match shapes.get("pos_embed").map(Vec::as_slice) {
            Some(&[_, tokens, _]) => Some(tokens.isqrt()).filter(|side| side.saturating_mul(*side) == tokens),
            _ => None,
        };
        let diffusers = self.layout() == Layout::DiffusersDit;
        Ok(Hints {
            implicit,
            input_size: side.map(|side| [side.saturating_mul(patch_size); 2]),
            patch_size,
            in_channels,
            hidden_size,
            num_heads: match hidden_size {
                384 => Some(6),
                768 => Some(12),
                1024 | 1152 => Some(16),
                _ => None,
            },
            mlp_ratio,
            pre_depth,
            group,
            post_depth,
            depth,
            labels,
            learn_sigma: out != per_patch,
            pre_post_timestep_conditioning: false,
            timestep_frequency_shift: if diffusers { 1.0 } else { 0.0 },
            mlp_norm_eps: if diffusers { 1e-5 } else { 1e-6 },
            block_embedders,
        })
    }
}

impl Hints {
    /// Takes over what only the `config.json` of diffusers says: heads, latent size, epsilon.
    pub fn read_diffusers(&mut self, config: &Value) {
        let whole = |name: &str| config.get(name).and_then(Value::as_u64).and_then(|v| usize::try_from(v).ok());
        self.num_heads = whole("num_attention_heads").or(self.num_heads);
        self.input_size = whole("sample_size").map(|side| [side; 2]).or(self.input_size);
        self.mlp_norm_eps = config.get("norm_eps").and_then(Value::as_f64).unwrap_or(self.mlp_norm_eps);
    }

    /// The settings of this network.
    ///
    /// # Errors
    /// [`Error::Config`] if heads or latent size are not known, or no network can be built like this.
    pub fn config(&self) -> Result<Config> {
        let Some(num_heads) = self.num_heads else {
            return Err(Error::config(
                "num_heads",
                format!("no tensor tells the heads of width {}; set them", self.hidden_size),
            ));
        };
        let Some(input_size) = self.input_size else {
            return Err(Error::config("input_size", "no tensor tells the height and width of the latents; set them"));
        };
        let config = Config {
            architecture: if self.implicit { Architecture::Fpdm } else { Architecture::Dit },
            input_size,
            patch_size: self.patch_size,
            in_channels: self.in_channels,
            hidden_size: self.hidden_size,
            num_heads,
            mlp_ratio: self.mlp_ratio,
            pre_depth: self.pre_depth,
            group: self.group,
            post_depth: self.post_depth,
            depth: self.depth,
            labels: self.labels,
            learn_sigma: self.learn_sigma,
            pre_post_timestep_conditioning: self.pre_post_timestep_conditioning,
            timestep_frequency_shift: self.timestep_frequency_shift,
            mlp_norm_eps: self.mlp_norm_eps,
            block_embedders: self.block_embedders,
        };
        config.check()?;
        Ok(config)
    }

    /// The `config.json` that diffusers expects beside [`Layout::DiffusersDit`].
    ///
    /// # Errors
    /// [`Error::Config`] if heads or latent size are not known, or diffusers has no such network.
    pub fn diffusers_json(&self) -> Result<Value> {
        let config = self.config()?;
        let Labels::Classes(classes) = self.labels else {
            return Err(Error::config("labels", format!("{:?}: diffusers' DiT knows classes only", self.labels)));
        };
        let heads = config.num_heads;
        let side = self.input_size.filter(|[height, width]| height == width).map(|[side, _]| side);
        let Some(side) = side else {
            return Err(Error::config("input_size", "diffusers' DiT knows square latents only"));
        };
        Ok(json!({
            "_class_name": "DiTTransformer2DModel",
            "num_attention_heads": heads,
            "attention_head_dim": self.hidden_size / heads,
            "in_channels": self.in_channels,
            "out_channels": if self.learn_sigma { 2 * self.in_channels } else { self.in_channels },
            "num_layers": self.depth,
            "dropout": 0.0,
            "norm_num_groups": 32,
            "attention_bias": true,
            "sample_size": side,
            "patch_size": self.patch_size,
            "activation_fn": "gelu-approximate",
            "num_embeds_ada_norm": classes,
            "upcast_attention": false,
            "norm_type": "ada_norm_zero",
            "norm_elementwise_affine": false,
            "norm_eps": self.mlp_norm_eps,
        }))
    }
}
