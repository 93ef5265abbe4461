//! The layout of the original encoder and decoder files.

use std::collections::HashMap;

use candle_core::Tensor;
use fpdm_core::{Error, Result};

use super::config::TinyConfig;

/// Names of diffusers for tensors of the original files, where the layers are numbered without a prefix and the
/// decoder's first layer is the clamp, which has no weights.
pub(super) fn from_original(
    origin: &str,
    encoder: HashMap<String, Tensor>,
    decoder: HashMap<String, Tensor>,
) -> Result<HashMap<String, Tensor>> {
    let mut tensors = HashMap::new();
    for (side, first, file) in [("encoder", 0, encoder), ("decoder", 1, decoder)] {
        for (name, tensor) in file {
            let split = name.split_once('.').and_then(|(n, rest)| Some((n.parse::<usize>().ok()?, rest)));
            let Some((layer, rest)) = split.filter(|(layer, _)| *layer >= first) else {
                let problem = format!("`{name}` of the {side} does not start with the number of a layer");
                return Err(Error::Weights { origin: origin.to_owned(), problems: vec![problem] });
            };
            tensors.insert(format!("{side}.layers.{}.{rest}", layer - first), tensor);
        }
    }
    Ok(tensors)
}

/// The config of a network with these tensors, diffusers names: what the original files leave unsaid.
///
/// The numbers of blocks are found by walking the layers: a block has `conv.0`, a change of size has not.
pub(super) fn infer(tensors: &HashMap<String, Tensor>) -> TinyConfig {
    let mut config = TinyConfig::default();
    let last = |side: &str| {
        let prefix = format!("{side}.layers.");
        let numbers = tensors.keys().filter_map(|k| k.strip_prefix(&prefix)?.split('.').next()?.parse::<usize>().ok());
        numbers.max().unwrap_or(0)
    };
    let is_block = |side: &str, layer| tensors.contains_key(&format!("{side}.layers.{layer}.conv.0.weight"));
    let is_conv = |side: &str, layer| tensors.contains_key(&format!("{side}.layers.{layer}.weight"));
    let dim = |name: &str, d| tensors.get(name).and_then(|t| t.dims().get(d).copied()).unwrap_or(0);
    for (side, blocks) in [("encoder", &mut config.num_encoder_blocks), ("decoder", &mut config.num_decoder_blocks)] {
        *blocks = vec![0];
        for layer in 1..last(side) {
            if is_block(side, layer) {
                blocks[..].last_mut().into_iter().for_each(|n| *n += 1);
            } else if is_conv(side, layer) {
                blocks.push(0);
            }
        }
    }
    let (e, d) = ("encoder.layers.0.weight", "decoder.layers.0.weight");
    config.in_channels = dim(e, 1);
    config.latent_channels = dim(d, 1);
    config.out_channels = dim(&format!("decoder.layers.{}.weight", last("decoder")), 0);
    config.encoder_block_out_channels = vec![dim(e, 0); config.num_encoder_blocks.len()];
    config.decoder_block_out_channels = vec![dim(d, 0); config.num_decoder_blocks.len()];
    config
}
