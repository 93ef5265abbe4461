//! From a name to a codec.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use fpdm_core::hub::{Hub, HubClient, Source};
use fpdm_core::{Error, LatentCodec, Result};
use serde_json::Value;

use crate::files::{self, Weights};
use crate::{AutoencoderKl, KlConfig, Pixels, Tiled, TiledKl, Tiling, TinyAutoencoder, TinyConfig};

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
    Ok(opened(source, dtype, device)?.whole())
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
    Ok(load(source, client, dtype, device)?.whole())
}

/// What it takes until a picture of uneven contrast is within half a step of 8 bits, docs/codecs.md.
const PASSES: usize = 4;

/// Opens a codec that sees one tile of `tile` latents at a time, of which neighbours share `overlap`: a
/// [`Tiled`](crate::Tiled), or a [`TiledKl`](crate::TiledKl) with four passes.
///
/// # Errors
/// Those of [`open`], and [`Error::Config`] for tiles that cannot be used.
pub fn open_tiled(
    source: &str,
    tile: usize,
    overlap: usize,
    dtype: DType,
    device: &Device,
) -> Result<Box<dyn LatentCodec>> {
    let tiling = |factor| Tiling { tile, overlap, factor };
    Ok(match opened(source, dtype, device)? {
        Opened::Kl(codec) => {
            let factor = codec.config().factor();
            Box::new(TiledKl::new(*codec, tiling(factor), PASSES)?)
        }
        Opened::Tiny(codec) => {
            let factor = codec.config().factor();
            Box::new(Tiled::new(codec, tiling(factor))?)
        }
        Opened::Pixels => Box::new(Tiled::new(Box::new(Pixels), tiling(1))?),
    })
}

enum Opened {
    Kl(Box<AutoencoderKl>),
    Tiny(Box<TinyAutoencoder>),
    Pixels,
}

impl Opened {
    fn whole(self) -> Box<dyn LatentCodec> {
        match self {
            Opened::Kl(codec) => codec,
            Opened::Tiny(codec) => codec,
            Opened::Pixels => Box::new(Pixels),
        }
    }
}

fn opened(source: &str, dtype: DType, device: &Device) -> Result<Opened> {
    if source == "pixels" {
        return Ok(Opened::Pixels);
    }
    let source = Source::parse(source)?;
    let client = match source {
        // Needs no cache, so no home directory either.
        Source::Folder(_) | Source::File(_) => Hub { offline: true, ..Hub::new("") },
        Source::Hub { .. } => Hub::from_env()?,
    };
    load(&source, &client, dtype, device)
}

fn load(source: &Source, client: &dyn HubClient, dtype: DType, device: &Device) -> Result<Opened> {
    floating(dtype)?;
    let found = files::find(source, client)?;
    let tensors = match &found.weights {
        Weights::Whole(path) => files::tensors(path)?,
        Weights::Halves { encoder, decoder } => {
            let (encoder, decoder) = (files::tensors(encoder)?, files::tensors(decoder)?);
            let codec = TinyAutoencoder::from_original(&found.origin, encoder, decoder, dtype, device)?;
            return Ok(Opened::Tiny(Box::new(codec)));
        }
    };
    let config = found.config.as_deref().map(files::json).transpose()?;
    build(&found.origin, config.as_ref(), tensors, dtype, device)
}

/// Opens the text of a codec's `config.json` and the bytes of its safetensors file, diffusers names: nothing is read
/// from a disk. `origin` is for messages.
///
/// # Errors
/// Those of [`open`].
pub fn open_bytes(
    origin: &str,
    config: &str,
    weights: &[u8],
    dtype: DType,
    device: &Device,
) -> Result<Box<dyn LatentCodec>> {
    floating(dtype)?;
    let config = files::parse(&format!("config.json of {origin}"), config)?;
    Ok(build(origin, Some(&config), files::tensors_of(origin, weights)?, dtype, device)?.whole())
}

fn floating(dtype: DType) -> Result<()> {
    if dtype.is_float() {
        return Ok(());
    }
    Err(Error::config("dtype", format!("{dtype:?} cannot hold weights; use a floating point type")))
}

fn build(
    origin: &str,
    config: Option<&Value>,
    tensors: HashMap<String, Tensor>,
    dtype: DType,
    device: &Device,
) -> Result<Opened> {
    let text = config.map(Value::to_string);
    match (kind(origin, config, &tensors)?, text) {
        (Kind::Kl, Some(text)) => {
            let config = named(KlConfig::from_json(&text), origin)?;
            AutoencoderKl::from_tensors(config, origin, tensors, dtype, device).map(|kl| Opened::Kl(Box::new(kl)))
        }
        (Kind::Kl, None) => Err(Error::Weights {
            origin: origin.to_owned(),
            problems: vec!["config.json is missing, which an AutoencoderKL needs; put it beside the weights".into()],
        }),
        (Kind::Tiny, Some(text)) => {
            let config = named(TinyConfig::from_json(&text), origin)?;
            TinyAutoencoder::from_tensors(config, origin, tensors, dtype, device)
                .map(|tiny| Opened::Tiny(Box::new(tiny)))
        }
        (Kind::Tiny, None) => {
            let config = TinyConfig::of_tensors(&tensors);
            TinyAutoencoder::from_tensors(config, origin, tensors, dtype, device)
                .map(|tiny| Opened::Tiny(Box::new(tiny)))
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
