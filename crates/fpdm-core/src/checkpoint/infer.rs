//! The settings of a network from the shapes of its tensors.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::container::broken;
use super::layout::Layout;
use super::open::Checkpoint;
use crate::dit::{Architecture, Config, Labels};
use crate::{Error, Result};

/// What no tensor tells. Fields that are `None` are guessed where a guess is safe.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Untold {
    /// Attention heads; `None` for those of the published width.
    pub num_heads: Option<usize>,
    /// Height and width of the latents; `None` for the square that `pos_embed` has room for.
    pub input_size: Option<[usize; 2]>,
    /// Epsilon of the layer norm before the MLPs; `None` for that of the layout, 1e-5 in diffusers, else 1e-6.
    pub mlp_norm_eps: Option<f64>,
    /// Whether pre-, post- and final layer are told the time. The published weights are not.
    pub pre_post_timestep_conditioning: bool,
}

impl Untold {
    /// From the `config.json` of a diffusers model; what is not in it stays `None`.
    pub fn from_diffusers(config: &Value) -> Self {
        let whole = |name: &str| config.get(name).and_then(Value::as_u64).and_then(|v| usize::try_from(v).ok());
        Self {
            num_heads: whole("num_attention_heads"),
            input_size: whole("sample_size").map(|side| [side; 2]),
            mlp_norm_eps: config.get("norm_eps").and_then(Value::as_f64),
            pre_post_timestep_conditioning: false,
        }
    }
}

impl Checkpoint {
    /// The settings of the network that these tensors belong to.
    ///
    /// # Errors
    /// [`Error::Weights`] if tensors that every network has are missing or have impossible shapes;
    /// [`Error::Config`] if something is neither told by a tensor nor in `untold`.
    pub fn config(&self, untold: &Untold) -> Result<Config> {
        let shapes = self.shapes();
        let bad = |why: String| broken(self.origin(), why);
        let find = |name: &str| shapes.get(name).ok_or_else(|| bad(format!("{name} is missing")));
        let &[hidden_size, in_channels, patch_size, width] = find("x_embedder.proj.weight")?.as_slice() else {
            return Err(bad("x_embedder.proj.weight: expected 4 dimensions".into()));
        };
        if hidden_size == 0 || in_channels == 0 || patch_size == 0 || patch_size != width {
            return Err(bad(format!("x_embedder.proj.weight: patches of {patch_size}×{width} are not square")));
        }
        let implicit = self.layout() == Layout::Fpdm;
        let block_embedders = shapes.contains_key("blocks.0.t_embedder.mlp.0.weight");
        let prefix = if block_embedders { "blocks.0." } else { "" };
        let labels = match (
            shapes.get(&format!("{prefix}y_embedder.embedding_table.weight")).map(Vec::as_slice),
            shapes.get(&format!("{prefix}y_embedder.mlp.0.weight")).map(Vec::as_slice),
        ) {
            // One row is the null class.
            (Some(&[rows, _]), _) if rows > 1 => Labels::Classes(rows - 1),
            (_, Some(&[_, length])) => Labels::Vector(length),
            _ => Labels::None,
        };
        let fc1 = shapes.iter().find(|(name, _)| name.ends_with(".mlp.fc1.weight"));
        let out = find("final_layer.linear.weight")?.first().copied().unwrap_or(0);
        let per_patch = patch_size.saturating_mul(patch_size).saturating_mul(in_channels);
        if out != per_patch && out != per_patch.saturating_mul(2) {
            return Err(bad(format!("final_layer.linear.weight: expected {per_patch} rows or twice that, got {out}")));
        }
        let diffusers = self.layout() == Layout::DiffusersDit;
        let config = Config {
            architecture: if implicit { Architecture::Fpdm } else { Architecture::Dit },
            input_size: self.input_size(untold, patch_size)?,
            patch_size,
            in_channels,
            hidden_size,
            num_heads: heads(untold, hidden_size)?,
            mlp_ratio: fc1.and_then(|(_, shape)| shape.first()).map_or(4.0, |&d| d as f64 / hidden_size as f64),
            pre_depth: self.blocks("blocks_pre.")?,
            group: if implicit { self.blocks("blocks_fixed_point.")?.max(1) } else { 0 },
            post_depth: self.blocks("blocks_post.")?,
            depth: self.blocks("blocks.")?,
            labels,
            learn_sigma: out != per_patch,
            pre_post_timestep_conditioning: untold.pre_post_timestep_conditioning,
            timestep_frequency_shift: if diffusers { 1.0 } else { 0.0 },
            mlp_norm_eps: untold.mlp_norm_eps.unwrap_or(if diffusers { 1e-5 } else { 1e-6 }),
            block_embedders,
        };
        config.check()?;
        Ok(config)
    }

    /// How many blocks there are whose names start with `prefix` and a number.
    pub(super) fn blocks(&self, prefix: &str) -> Result<usize> {
        let number = |name: &String| name.strip_prefix(prefix)?.split('.').next()?.parse::<usize>().ok();
        let numbers: BTreeSet<usize> = self.shapes().keys().filter_map(number).collect();
        match numbers.iter().enumerate().find(|(expected, got)| expected != *got) {
            Some((gap, _)) => {
                Err(broken(self.origin(), format!("{prefix}{gap} is missing, but there are blocks after it")))
            }
            None => Ok(numbers.len()),
        }
    }

    fn input_size(&self, untold: &Untold, patch_size: usize) -> Result<[usize; 2]> {
        let side = match self.shapes().get("pos_embed").map(Vec::as_slice) {
            Some(&[_, tokens, _]) => Some(tokens.isqrt()).filter(|side| side.saturating_mul(*side) == tokens),
            _ => None,
        };
        untold.input_size.or(side.map(|side| [side.saturating_mul(patch_size); 2])).ok_or_else(|| {
            Error::config("input_size", format!("no tensor of {} tells the size of the latents; set it", self.origin()))
        })
    }
}

/// Width and heads of the published sizes.
const HEADS: [(usize, usize); 4] = [(384, 6), (768, 12), (1024, 16), (1152, 16)];

fn heads(untold: &Untold, hidden_size: usize) -> Result<usize> {
    let published = HEADS.iter().find(|(width, _)| *width == hidden_size).map(|(_, heads)| *heads);
    untold.num_heads.or(published).ok_or_else(|| {
        Error::config("num_heads", format!("no tensor tells the heads of width {hidden_size}; set them"))
    })
}

/// The `config.json` of diffusers' `DiTTransformer2DModel` for a network of ours.
///
/// # Errors
/// [`Error::Config`] if diffusers has no such network.
pub fn diffusers_config(config: &Config) -> Result<Value> {
    if config.architecture != Architecture::Dit {
        return Err(Error::config("architecture", "diffusers has no implicit network; convert to our own layout"));
    }
    let Labels::Classes(classes) = config.labels else {
        return Err(Error::config("labels", format!("{:?}: diffusers' DiT knows classes only", config.labels)));
    };
    let [height, width] = config.input_size;
    if height != width {
        return Err(Error::config("input_size", format!("{height}×{width}: diffusers' DiT knows squares only")));
    }
    if config.mlp_ratio != 4.0 {
        return Err(Error::config("mlp_ratio", format!("{}: diffusers' DiT knows 4 only", config.mlp_ratio)));
    }
    config.check()?;
    Ok(json!({
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.hidden_size / config.num_heads,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels(),
        "num_layers": config.depth,
        "dropout": 0.0,
        "norm_num_groups": 32,
        "attention_bias": true,
        "sample_size": height,
        "patch_size": config.patch_size,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": classes,
        "upcast_attention": false,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": false,
        "norm_eps": config.mlp_norm_eps,
    }))
}
