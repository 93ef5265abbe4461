//! The state dict inside a pickle.

use std::collections::HashMap;

use super::value::{Arena, Id, Value, View};
use crate::checkpoint::Which;

/// Names under which tools keep the only weights of a file.
const WRAPPERS: [&str; 3] = ["state_dict", "model_state_dict", "module"];

/// The tensors of the weights that are wanted, by name.
///
/// A flat dict of tensors is taken whatever is wanted; a training checkpoint has `model` and `ema`.
pub(super) fn tensors(arena: &Arena, root: Id, which: Which) -> Result<HashMap<String, View>, String> {
    let top = arena.dict(root).ok_or("expected a dict of tensors or a training checkpoint, got another object")?;
    let flat = flat(arena, &top);
    if !flat.is_empty() {
        return Ok(flat);
    }
    let (wanted, other) = match which {
        Which::Model => ("model", "ema"),
        Which::Ema => ("ema", "model"),
    };
    let found = top.get(wanted).or_else(|| match top.contains_key(other) {
        true => None,
        false => WRAPPERS.iter().find_map(|name| top.get(name)),
    });
    let inside = found.and_then(|&id| arena.dict(id)).map(|dict| self::flat(arena, &dict)).unwrap_or_default();
    if inside.is_empty() {
        let mut keys: Vec<&str> = top.keys().copied().take(16).collect();
        keys.sort_unstable();
        return Err(format!(
            "expected tensors under `{wanted}`, got the keys {keys:?}; ask for another set of weights"
        ));
    }
    Ok(inside)
}

fn flat(arena: &Arena, dict: &HashMap<&str, Id>) -> HashMap<String, View> {
    dict.iter()
        .filter_map(|(&name, &id)| match arena.get(id) {
            Value::Tensor(view) => Some((name.to_owned(), view.clone())),
            _ => None,
        })
        .collect()
}
