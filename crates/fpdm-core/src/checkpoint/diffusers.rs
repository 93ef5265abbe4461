//! The names of diffusers' `DiTTransformer2DModel`.

use std::collections::BTreeSet;

use super::container::{Container, broken};
use super::layout::{Recipe, Recipes};
use crate::{Error, Result};

/// Pairs of modules outside the blocks: ours, diffusers'.
const TOP: [(&str, &str); 3] = [
    ("x_embedder.proj", "pos_embed.proj"),
    ("final_layer.adaLN_modulation.1", "proj_out_1"),
    ("final_layer.linear", "proj_out_2"),
];

/// Pairs of modules in a block.
const BLOCK: [(&str, &str); 4] = [
    ("attn.proj", "attn1.to_out.0"),
    ("mlp.fc1", "ff.net.0.proj"),
    ("mlp.fc2", "ff.net.2"),
    ("adaLN_modulation.1", "norm1.linear"),
];

/// Our one projection and their three, from top to bottom.
const QKV: (&str, [&str; 3]) = ("attn.qkv", ["attn1.to_q", "attn1.to_k", "attn1.to_v"]);

/// Pairs of tensors of the embedders.
const EMBEDDERS: [(&str, &str); 5] = [
    ("t_embedder.mlp.0.weight", "norm1.emb.timestep_embedder.linear_1.weight"),
    ("t_embedder.mlp.0.bias", "norm1.emb.timestep_embedder.linear_1.bias"),
    ("t_embedder.mlp.2.weight", "norm1.emb.timestep_embedder.linear_2.weight"),
    ("t_embedder.mlp.2.bias", "norm1.emb.timestep_embedder.linear_2.bias"),
    ("y_embedder.embedding_table.weight", "norm1.emb.class_embedder.embedding_table.weight"),
];

const LEAVES: [&str; 2] = ["weight", "bias"];

/// What diffusers keeps beside the weights and computes anew.
const BUFFERS: [&str; 1] = ["pos_embed.pos_embed"];

/// Our names for `names`, which lie below `prefix`.
///
/// The embedders become one where all blocks hold the same, as in the converted releases, and stay one a block
/// (`blocks.N.t_embedder`) where they differ, as in a model trained with diffusers.
pub(super) fn recipes(
    origin: &str,
    container: &dyn Container,
    prefix: &str,
    names: &BTreeSet<&str>,
) -> Result<Recipes> {
    let mut recipes = Recipes::new();
    let mut unused: BTreeSet<&str> = names.iter().copied().filter(|name| !BUFFERS.contains(name)).collect();
    let mut put = |ours: String, theirs: &[String]| {
        if theirs.iter().all(|name| unused.contains(name.as_str())) {
            unused.retain(|name| !theirs.iter().any(|used| used == name));
            let stored = theirs.iter().map(|name| format!("{prefix}{name}"));
            let recipe = match theirs {
                [one] => Recipe::Whole(format!("{prefix}{one}")),
                _ => Recipe::Rows(stored.collect()),
            };
            recipes.insert(ours, recipe);
        }
    };
    for leaf in LEAVES {
        for (ours, theirs) in TOP {
            put(format!("{ours}.{leaf}"), &[format!("{theirs}.{leaf}")]);
        }
    }
    let blocks = block_numbers(names);
    for &n in &blocks {
        for leaf in LEAVES {
            for (ours, theirs) in BLOCK {
                put(format!("blocks.{n}.{ours}.{leaf}"), &[format!("transformer_blocks.{n}.{theirs}.{leaf}")]);
            }
            let parts = QKV.1.map(|part| format!("transformer_blocks.{n}.{part}.{leaf}"));
            put(format!("blocks.{n}.{}.{leaf}", QKV.0), &parts);
        }
        for (ours, theirs) in EMBEDDERS {
            put(format!("blocks.{n}.{ours}"), &[format!("transformer_blocks.{n}.{theirs}")]);
        }
    }
    if !unused.is_empty() {
        let problems =
            unused.iter().map(|name| format!("{name} is not part of this layout, or its partner is missing"));
        return Err(Error::Weights { origin: origin.to_owned(), problems: problems.collect() });
    }
    if same_embedders(origin, container, &recipes, &blocks)? {
        for (ours, _) in EMBEDDERS {
            for (i, n) in blocks.iter().enumerate() {
                if let Some(recipe) = recipes.remove(&format!("blocks.{n}.{ours}"))
                    && i == 0
                {
                    recipes.insert(ours.to_owned(), recipe);
                }
            }
        }
    }
    Ok(recipes)
}

fn block_numbers(names: &BTreeSet<&str>) -> Vec<usize> {
    let number = |name: &&str| name.strip_prefix("transformer_blocks.")?.split('.').next()?.parse().ok();
    names.iter().filter_map(number).collect::<BTreeSet<usize>>().into_iter().collect()
}

fn same_embedders(origin: &str, container: &dyn Container, recipes: &Recipes, blocks: &[usize]) -> Result<bool> {
    let Some((first, rest)) = blocks.split_first() else { return Ok(true) };
    let stored = |n: &usize, ours: &str| recipes.get(&format!("blocks.{n}.{ours}")).map(|r| r.sources()[0].clone());
    for (ours, _) in EMBEDDERS {
        let Some(reference) = stored(first, ours) else {
            return Err(broken(origin, format!("block {first} has no {ours} under its diffusers name")));
        };
        let mut tensor = None;
        for n in rest {
            let Some(name) = stored(n, ours) else { return Ok(false) };
            if container.shapes()[&name] != container.shapes()[&reference] {
                return Ok(false);
            }
            if tensor.is_none() {
                tensor = Some(container.read(&reference)?);
            }
            let (Some(a), b) = (&tensor, container.read(&name)?) else { continue };
            if a.dtype() != b.dtype() || bytes(a) != bytes(&b) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Compared as bytes, so that a NaN equals itself.
fn bytes(tensor: &candle_core::Tensor) -> Vec<u8> {
    safetensors::View::data(tensor).into_owned()
}

/// What a tensor of ours becomes: their names, and whether it is cut in as many parts by rows.
///
/// `blocks` is the depth: shared embedders are repeated in every block.
pub(super) fn targets(ours: &str, blocks: usize) -> Option<Targets> {
    if ours == "pos_embed" {
        return Some(Targets::Drop);
    }
    if let Some((_, theirs)) = EMBEDDERS.iter().find(|(name, _)| *name == ours) {
        return Some(Targets::Copies((0..blocks).map(|n| format!("transformer_blocks.{n}.{theirs}")).collect()));
    }
    let (module, leaf) = ours.rsplit_once('.')?;
    if let Some((_, theirs)) = TOP.iter().find(|(name, _)| *name == module) {
        return Some(Targets::Copies(vec![format!("{theirs}.{leaf}")]));
    }
    let (n, rest) = ours.strip_prefix("blocks.")?.split_once('.')?;
    if let Some((_, theirs)) = EMBEDDERS.iter().find(|(name, _)| *name == rest) {
        return Some(Targets::Copies(vec![format!("transformer_blocks.{n}.{theirs}")]));
    }
    let module = rest.strip_suffix(leaf)?.strip_suffix('.')?;
    if module == QKV.0 {
        return Some(Targets::Rows(QKV.1.map(|part| format!("transformer_blocks.{n}.{part}.{leaf}"))));
    }
    let (_, theirs) = BLOCK.iter().find(|(name, _)| *name == module)?;
    Some(Targets::Copies(vec![format!("transformer_blocks.{n}.{theirs}.{leaf}")]))
}

pub(super) enum Targets {
    /// Not stored there.
    Drop,
    /// The same under each name.
    Copies(Vec<String>),
    /// A third of the rows each.
    Rows([String; 3]),
}
