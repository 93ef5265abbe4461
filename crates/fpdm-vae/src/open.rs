//! From a name to a codec.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use fpdm_core::hub::{Hub, HubClient, Source};
use fpdm_core::{Error, LatentCodec, Result};
use serde_json::Value;

use crate::files::{self, Weights};
use crate::{AutoencoderKl, KlConfig, Pixels, TinyAutoencoder, TinyConfig};

/// Opens a codec: `pixels`, a Hub repository (`stabilityai/sd-vae-ft-mse`, `madebyollin/taesd`, with `@revision` if
/// wanted), a folder or a file.
///
/// Looked for are `config.json` with `diffusion_pytorch_model.safetensors` (or `.fp16.`), at the top or in `vae/` as
/// pipelines have it, the same as `.bin`, and the pair of original files of TAESD, in safetensors or as `torch.save`
/// writes them; where a folder has several pairs, one file of the wanted one is named. The kind is what `_class_name`
/// says, or the fields of the config, or the names of the tensors. Weights are cast to `dtype`.
///
/// # Errors
/// [`Error::Config`] if the text is no source, the class is unknown or a value of the config cannot be used,
/// [`Error::Weights`] with all missing, misshapen and unknown tensors, [`Error::Hub`] and [`Error::Io`] if a file cannot be
/// had.
pub fn open(source: &str, dtype: DType, device: &Device) -> Result<Box<dyn LatentCodec>> {
    if source == "pixels" {
        return Ok(Box::new(Pixels));
    }
    let source = Source::parse(source)?;
    let client = match source {
        // Needs no cache, so no home directory either.
        Source::Folder(_) | Source::File(_) => Hub { offline: true, ..Hub::new("") },
        Source::Hub { .. } => Hub::from_env()?,
    };
    open_with(&source, &client, dtype, device)
}

/// The same with a Hub of one's own.
///
/// # Errors
/// Those of [`open`].
pub fn open_with(
    source: &Source,
    client: &dyn HubClient,
    dtype: DType,
    device: &Device,
) -> Result<Box<dyn LatentCodec>> {
    if !dtype.is_float() {
        return Err(Error::config("dtype", format!("{dtype:?} cannot hold weights; use a floating point type")));
    }
    let found = files::find(source, client)?;
    let tensors = match &found.weights {
        Weights::Whole(path) => files::tensors(path)?,
        Weights::Halves { encoder, decoder } => {
            let (encoder, decoder) = (files::tensors(encoder)?, files::tensors(decoder)?);
            return Ok(Box::new(TinyAutoencoder::from_original(&found.origin, encoder, decoder, dtype, device)?));
        }
    };
    let config = found.config.as_deref().map(files::json).transpose()?;
    let text = config.as_ref().map(Value::to_string);
    match (kind(&found.origin, config.as_ref(), &tensors)?, text) {
        (Kind::Kl, Some(text)) => {
            let config = named(KlConfig::from_json(&text), &found.origin)?;
            Ok(Box::new(AutoencoderKl::from_tensors(config, &found.origin, tensors, dtype, device)?))
        }
        (Kind::Kl, None) => Err(Error::Weights {
            origin: found.origin,
            problems: vec!["config.json is missing, which an AutoencoderKL needs; put it beside the weights".into()],
        }),
        (Kind::Tiny, Some(text)) => {
            let config = named(TinyConfig::from_json(&text), &found.origin)?;
            Ok(Box::new(TinyAutoencoder::from_tensors(config, &found.origin, tensors, dtype, device)?))
        }
        (Kind::Tiny, None) => {
            let config = TinyConfig::of_tensors(&tensors);
            Ok(Box::new(TinyAutoencoder::from_tensors(config, &found.origin, tensors, dtype, device)?))
        }
    }
}

enum Kind {
    Kl,
    Tiny,
}

fn kind(origin: &str, config: Option<&Value>, tensors: &HashMap<String, Tensor>) -> Result<Kind> {
    let has = |field: &str| config.is_some_and(|c| c.get(field).is_some());
    let starts = |start: &str| tensors.keys().any(|name| name.starts_with(start));
    match config.and_then(|c| c.get("_class_name")).map(|class| class.as_str().unwrap_or_default()) {
        Some("AutoencoderKL") => Ok(Kind::Kl),
        Some("AutoencoderTiny") => Ok(Kind::Tiny),
        Some(other) => {
            let why = format!("`{other}` of {origin}; expected AutoencoderKL or AutoencoderTiny");
            Err(Error::config("_class_name", why))
        }
        None if has("encoder_block_out_channels") => Ok(Kind::Tiny),
        None if has("norm_num_groups") || has("down_block_types") => Ok(Kind::Kl),
        None if starts("encoder.down_blocks.") => Ok(Kind::Kl),
        None if starts("encoder.layers.") => Ok(Kind::Tiny),
        None => {
            let problem = "neither config.json nor the names of the tensors are those of an AutoencoderKL \
                           (encoder.down_blocks.*) or an AutoencoderTiny (encoder.layers.*)";
            Err(Error::Weights { origin: origin.to_owned(), problems: vec![problem.into()] })
        }
    }
}

/// A bad value is said with the source it came from.
fn named<T>(config: Result<T>, origin: &str) -> Result<T> {
    config.map_err(|e| match e {
        Error::Config { field, why } => Error::Config { field, why: format!("{why} (config.json of {origin})") },
        other => other,
    })
}
