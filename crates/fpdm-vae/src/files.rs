//! The files of a codec, wherever they are.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use fpdm_core::hub::{HubClient, RemoteFile, Source};
use fpdm_core::{Error, Result};
use serde_json::Value;

/// Weight files of diffusers, in this order.
const WEIGHTS: [&str; 3] =
    ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors", "model.safetensors"];

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
            let config = path.parent().map_or(Ok(None), |folder| local(folder, "config.json"))?;
            Some((config, Weights::Whole(path.clone())))
        }
        Source::Folder(folder) => usual(&halves_in(folder)?, &mut |name| local(folder, name))?,
        Source::Hub { id, revision, file } => {
            let find = &mut |path: &str| client.find(RemoteFile { repo: id, revision, path }, &mut |_| {});
            match file {
                Some(path) => {
                    let weights = client.fetch(RemoteFile { repo: id, revision, path }, &mut |_| {})?;
                    let folder = path.rfind('/').map_or("", |end| &path[..=end]);
                    Some((find(&format!("{folder}config.json"))?, Weights::Whole(weights)))
                }
                None => {
                    let name = id.rsplit('/').next().unwrap_or_default();
                    usual(&["encoder", "decoder"].map(|half| format!("{name}_{half}.safetensors")), find)?
                }
            }
        }
    };
    match found {
        Some((config, weights)) => Ok(Found { origin, config, weights }),
        None => {
            let names = WEIGHTS.join(", ");
            let problem = format!(
                "holds none of {names}, at the top or in vae/, nor the pair *encoder.safetensors and \
                 *decoder.safetensors; convert .bin and .pth files to safetensors"
            );
            Err(Error::Weights { origin, problems: vec![problem] })
        }
    }
}

fn usual(halves: &[String; 2], find: &mut Find) -> Result<Option<(Option<PathBuf>, Weights)>> {
    for folder in FOLDERS {
        for name in WEIGHTS {
            if let Some(weights) = find(&format!("{folder}{name}"))? {
                return Ok(Some((find(&format!("{folder}config.json"))?, Weights::Whole(weights))));
            }
        }
    }
    if halves[0].is_empty() || halves[1].is_empty() {
        return Ok(None);
    }
    match (find(&halves[0])?, find(&halves[1])?) {
        // Their shapes say more than a config, which describes the other layout.
        (Some(encoder), Some(decoder)) => Ok(Some((None, Weights::Halves { encoder, decoder }))),
        _ => Ok(None),
    }
}

/// The only files of a folder that end like the two halves; empty names if there is none or a choice.
fn halves_in(folder: &Path) -> Result<[String; 2]> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        names.extend(entry.map_err(|e| Error::io(folder, e))?.file_name().into_string().ok());
    }
    let only = |end: &str| {
        let mut fitting = names.iter().filter(|name| name.ends_with(end));
        match (fitting.next(), fitting.next()) {
            (Some(name), None) => name.clone(),
            _ => String::new(),
        }
    };
    Ok(["encoder.safetensors", "decoder.safetensors"].map(only))
}

/// The tensors of a safetensors file, on the CPU.
pub(crate) fn tensors(path: &Path) -> Result<HashMap<String, Tensor>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    tensors_of(&path.display().to_string(), &bytes)
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
