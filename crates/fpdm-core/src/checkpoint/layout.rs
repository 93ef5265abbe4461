//! Which naming a file follows.

use std::collections::{BTreeMap, BTreeSet};

use super::container::{Container, broken};
use super::diffusers;
use crate::Result;

/// Whose names a file uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The published FPDM code, which is ours.
    Fpdm,
    /// The released DiT, which is ours for the baseline. Time and label embedders of its own for a block, which only
    /// a converted diffusers file has, are `blocks.N.t_embedder` and `blocks.N.y_embedder`.
    Dit,
    /// diffusers' `DiTTransformer2DModel`: separate q, k and v, and the embedders repeated in every block.
    DiffusersDit,
}

/// How one of our tensors is made of stored ones.
#[derive(Clone, Debug)]
pub(super) enum Recipe {
    /// As stored.
    Whole(String),
    /// These, one below the other.
    Rows(Vec<String>),
}

impl Recipe {
    pub(super) fn sources(&self) -> &[String] {
        match self {
            Recipe::Whole(name) => std::slice::from_ref(name),
            Recipe::Rows(names) => names,
        }
    }

    /// The shape of what is made; the parts have to fit.
    pub(super) fn shape(&self, stored: &BTreeMap<String, Vec<usize>>) -> Result<Vec<usize>, String> {
        let shapes: Vec<&Vec<usize>> = self.sources().iter().filter_map(|name| stored.get(name)).collect();
        let Some((first, rest)) = shapes.split_first() else { return Err("has no source".into()) };
        let mut shape = (*first).clone();
        for (other, name) in rest.iter().zip(&self.sources()[1..]) {
            if other.is_empty() || shape.is_empty() || other[1..] != shape[1..] {
                return Err(format!("{name}: shape {other:?} does not fit below {first:?} of {}", self.sources()[0]));
            }
            shape[0] = shape[0].saturating_add(other[0]);
        }
        Ok(shape)
    }
}

/// Our names and where they come from.
pub(super) type Recipes = BTreeMap<String, Recipe>;

/// Prefixes that wrappers put before every name: a choice of the caller, data parallel, compiled.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];

/// Finds the layout of what lies below `prefix`, and the recipe of each of our tensors.
pub(super) fn detect(origin: &str, container: &dyn Container, prefix: &str) -> Result<(Layout, Recipes)> {
    let mut prefix = prefix.to_owned();
    let below = |prefix: &str| -> BTreeSet<&str> {
        container.shapes().keys().filter_map(|name| name.strip_prefix(prefix)).collect()
    };
    let mut names = below(&prefix);
    while let Some(wrapper) = WRAPPERS.iter().find(|w| !names.is_empty() && names.iter().all(|n| n.starts_with(**w))) {
        prefix.push_str(wrapper);
        names = below(&prefix);
    }
    let starts = |start: &str| names.iter().any(|name| name.starts_with(start));
    if starts("transformer_blocks.") {
        return Ok((Layout::DiffusersDit, diffusers::recipes(origin, container, &prefix, &names)?));
    }
    let layout = if starts("block_fixed_point") || starts("blocks_fixed_point.") {
        Layout::Fpdm
    } else if starts("blocks.") && names.contains("x_embedder.proj.weight") {
        Layout::Dit
    } else {
        let some: Vec<&str> = names.iter().take(3).copied().collect();
        return Err(broken(
            origin,
            format!(
                "layout not recognised: expected block_fixed_point.* (FPDM), blocks.* with x_embedder.* (DiT) or \
                 transformer_blocks.* (diffusers), got {} tensors{}{}",
                names.len(),
                if some.is_empty() { "" } else { " such as " },
                some.join(", ")
            ),
        ));
    };
    let whole = |name: &&str| (name.to_string(), Recipe::Whole(format!("{prefix}{name}")));
    Ok((layout, names.iter().map(whole).collect()))
}
