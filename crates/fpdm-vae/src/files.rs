//! The files of a codec, wherever they are.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use fpdm_core::checkpoint::{Which, read_tensors};
use fpdm_core::hub::{HubClient, RemoteFile, Source};
use fpdm_core::{Error, Result};
use serde_json::Value;

/// Weight files of diffusers, in this order.
const WEIGHTS: [&str; 4] = [
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.bin",
];

/// How the two halves of an original codec end, in this order.
const ENDINGS: [&str; 4] = [".safetensors", ".pth", ".pt", ".bin"];

/// The folder of a whole pipeline that holds its codec.
const FOLDERS: [&str; 2] = ["", "vae/"];

/// What was found.
pub(crate) struct Found {
    /// For messages.
    pub(crate) origin: String,
    pub(crate) config: Option<PathBuf>,
    pub(crate) weights: Weights,
}

/// One file for both directions, or one for each.
pub(crate) enum Weights {
    Whole(PathBuf),
    Halves { encoder: PathBuf, decoder: PathBuf },
}

type Find<'a> = dyn FnMut(&str) -> Result<Option<PathBuf>> + 'a;

/// Looks for the files, and fetches those that are not local.
pub(crate) fn find(source: &Source, client: &dyn HubClient) -> Result<Found> {
    let origin = source.to_string();
    let local = |folder: &Path, name: &str| Ok(Some(folder.join(name)).filter(|path| path.is_file()));
    let found = match source {
        Source::File(path) => {
            let folder = path.parent().unwrap_or(Path::new(""));
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            Some(named(name, path.clone(), "", &mut |name| local(folder, name))?)
        }
        Source::Folder(folder) => {
            let find = &mut |name: &str| local(folder, name);
            match whole(find)? {
                None => halves(&pairs_in(folder)?, find)?,
                found => found,
            }
        }
        Source::Hub { id, revision, file } => {
            let find = &mut |path: &str| client.find(RemoteFile { repo: id, revision, path }, &mut |_| {});
            match file {
                Some(path) => {
                    let weights = client.fetch(RemoteFile { repo: id, revision, path }, &mut |_| {})?;
                    let folder = path.rfind('/').map_or("", |end| &path[..=end]);
                    Some(named(path, weights, folder, find)?)
                }
                None => {
                    let name = id.rsplit('/').next().unwrap_or_default();
                    match whole(find)? {
                        None => halves(&ENDINGS.map(|ending| pair(&format!("{name}_"), ending)), find)?,
                        found => found,
                    }
                }
            }
        }
    };
    match found {
        Some((config, weights)) => Ok(Found { origin, config, weights }),
        None => {
            let names = WEIGHTS.join(", ");
            let problem = format!(
                "holds none of {names}, at the top or in vae/, nor a pair *encoder and *decoder in one of {}",
                ENDINGS.join(", ")
            );
            Err(Error::Weights { origin, problems: vec![problem] })
        }
    }
}

/// The file that the user names, or the pair that it is a half of.
fn named(name: &str, weights: PathBuf, folder: &str, find: &mut Find) -> Result<(Option<PathBuf>, Weights)> {
    if let Some(pair) = pair_of(name)
        && let (Some(encoder), Some(decoder)) = (find(&pair[0])?, find(&pair[1])?)
    {
        return Ok((None, Weights::Halves { encoder, decoder }));
    }
    Ok((find(&format!("{folder}config.json"))?, Weights::Whole(weights)))
}

fn whole(find: &mut Find) -> Result<Option<(Option<PathBuf>, Weights)>> {
    for folder in FOLDERS {
        for name in WEIGHTS {
            if let Some(weights) = find(&format!("{folder}{name}"))? {
                return Ok(Some((find(&format!("{folder}config.json"))?, Weights::Whole(weights))));
            }
        }
    }
    Ok(None)
}

fn halves(pairs: &[[String; 2]], find: &mut Find) -> Result<Option<(Option<PathBuf>, Weights)>> {
    for [encoder, decoder] in pairs {
        if let (Some(encoder), Some(decoder)) = (find(encoder)?, find(decoder)?) {
            // Their shapes say more than a config, which describes the other layout.
            return Ok(Some((None, Weights::Halves { encoder, decoder })));
        }
    }
    Ok(None)
}

fn pair(start: &str, ending: &str) -> [String; 2] {
    ["encoder", "decoder"].map(|half| format!("{start}{half}{ending}"))
}

/// The pair that a file is a half of, by its name.
fn pair_of(name: &str) -> Option<[String; 2]> {
    ENDINGS.iter().find_map(|ending| {
        let stem = name.strip_suffix(ending)?;
        let start = stem.strip_suffix("encoder").or_else(|| stem.strip_suffix("decoder"))?;
        Some(pair(start, ending))
    })
}

/// The pairs in a folder: one, or one in several formats.
fn pairs_in(folder: &Path) -> Result<Vec<[String; 2]>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        names.extend(entry.map_err(|e| Error::io(folder, e))?.file_name().into_string().ok());
    }
    let mut pairs: Vec<_> = names.iter().filter_map(|name| pair_of(name)).collect();
    pairs.retain(|pair| pair.iter().all(|half| names.contains(half)));
    let rank = |pair: &[String; 2]| ENDINGS.iter().position(|ending| pair[0].ends_with(ending));
    pairs.sort_by_cached_key(|pair| (rank(pair), pair.clone()));
    pairs.dedup();
    let stem = |pair: &[String; 2]| pair[0].rsplit_once('.').map(|(stem, _)| stem.to_owned());
    if pairs.iter().any(|pair| stem(pair) != stem(&pairs[0])) {
        let decoders: Vec<_> = pairs.iter().map(|pair| pair[1].as_str()).collect();
        let problem = format!("holds several codecs; name the file of one: {}", decoders.join(", "));
        return Err(Error::Weights { origin: folder.display().to_string(), problems: vec![problem] });
    }
    Ok(pairs)
}

/// The tensors of a file, on the CPU.
pub(crate) fn tensors(path: &Path) -> Result<HashMap<String, Tensor>> {
    read_tensors(path, Which::Ema)
}

/// The tensors of a safetensors file in memory, on the CPU.
pub(crate) fn tensors_of(origin: &str, bytes: &[u8]) -> Result<HashMap<String, Tensor>> {
    candle_core::safetensors::load_buffer(bytes, &Device::Cpu).map_err(|e| {
        let why = e.to_string();
        let why = why.lines().next().unwrap_or_default();
        Error::Weights { origin: origin.to_owned(), problems: vec![format!("no safetensors: {why}")] }
    })
}

/// A JSON object.
pub(crate) fn json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    parse(&path.display().to_string(), &text)
}

/// A JSON object from its text.
pub(crate) fn parse(origin: &str, text: &str) -> Result<Value> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(Error::config(origin, "expected an object")),
        Err(e) => Err(Error::config(origin, format!("no JSON: {e}"))),
    }
}
