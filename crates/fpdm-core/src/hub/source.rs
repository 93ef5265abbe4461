//! Where weights come from, as a user writes it.

use std::path::{Path, PathBuf};

use super::cache::is_inside;
use super::client::{HubClient, Progress, RemoteFile};
use crate::{Diffusion, Error, Result};

/// The names that are looked for, in this order.
const NAMES: [&str; 4] =
    ["model.safetensors", "diffusion_pytorch_model.safetensors", "model.pt", "diffusion_pytorch_model.bin"];

/// The folder of a diffusers pipeline that holds its network.
const FOLDERS: [&str; 2] = ["", "transformer/"];

/// Where weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A repository of the Hub.
    Hub {
        /// `org/name`.
        id: String,
        /// A branch, a tag or a commit hash.
        revision: String,
        /// The weight file in it; `None` looks for the usual names.
        file: Option<String>,
    },
    /// A folder with `config.json` and a weight file.
    Folder(PathBuf),
    /// A weight file, or the `.safetensors.index.json` of several; `config.json` is looked for beside it.
    File(PathBuf),
}

/// What a [`Source`] holds, on the local disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The `config.json`, if there is one.
    pub config: Option<PathBuf>,
    /// The `diffusion.json`, if there is one.
    pub diffusion: Option<PathBuf>,
    /// The weight file, or all shards.
    pub weights: Vec<PathBuf>,
}

impl std::str::FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Hub { id, revision, file: None } => write!(f, "{id}@{revision}"),
            Source::Hub { id, revision, file: Some(file) } => write!(f, "{id}/{file}@{revision}"),
            Source::Folder(path) | Source::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Source {
    /// A path that exists, or `org/name`, `org/name@revision`, `org/name/path/to/file@revision`.
    ///
    /// # Errors
    /// [`Error::Config`] if the text is none of these.
    pub fn parse(text: &str) -> Result<Self> {
        let path = Path::new(text);
        if path.is_dir() {
            return Ok(Source::Folder(path.to_path_buf()));
        }
        if path.exists() {
            return Ok(Source::File(path.to_path_buf()));
        }
        let refused = |why: &str| {
            Err(Error::config(
                "weights",
                format!("`{text}` {why}; give a path that exists, org/name or org/name@revision"),
            ))
        };
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let mut parts = name.splitn(3, '/');
        let (Some(org), Some(repo), file) = (parts.next(), parts.next(), parts.next()) else {
            return refused("is no file, no folder and no repository");
        };
        if !is_inside(name) || !is_inside(revision) || name.starts_with('~') || org.starts_with('.') {
            return refused("is no file, no folder and no repository");
        }
        let is_file = |name: &str| [".safetensors", ".pt", ".pth", ".bin", ".json"].iter().any(|e| name.ends_with(e));
        if file.is_none() && is_file(repo) {
            return refused("is no file that exists");
        }
        if file.is_some_and(|file| !is_file(file)) {
            return refused("names no weight file after the repository");
        }
        Ok(Source::Hub { id: format!("{org}/{repo}"), revision: revision.to_owned(), file: file.map(str::to_owned) })
    }

    /// Finds the weights with `config.json` and `diffusion.json` beside them, and downloads what is not local.
    ///
    /// Looked for are `model.safetensors`, `diffusion_pytorch_model.safetensors`, each whole or as an
    /// `.index.json` with shards, `model.pt` and `diffusion_pytorch_model.bin`, at the top and in `transformer/`; in a
    /// local folder also the only `*.safetensors` or `*.pt` of another name.
    ///
    /// # Errors
    /// [`Error::Weights`] if there are none, or an index is broken; the errors of [`HubClient::find`].
    pub fn locate(&self, client: &dyn HubClient, progress: &mut dyn FnMut(Progress)) -> Result<Located> {
        match self {
            Source::Folder(folder) => in_folder(folder),
            Source::File(path) => {
                let folder = path.parent().unwrap_or(Path::new(""));
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let mut find = |name: &str| Ok(Some(folder.join(name)).filter(|path| path.is_file()));
                let weights = match name.ends_with(".index.json") {
                    true => shards(path, "", &mut find)?,
                    false => vec![path.clone()],
                };
                beside("", weights, &mut find)
            }
            Source::Hub { id, revision, file } => {
                let mut find = |path: &str| client.find(RemoteFile { repo: id, revision, path }, &mut *progress);
                match file {
                    Some(file) => {
                        let folder = file.rfind('/').map_or("", |end| &file[..=end]);
                        let Some(path) = find(file)? else {
                            return client
                                .fetch(RemoteFile { repo: id, revision, path: file }, progress)
                                .map(|path| Located { config: None, diffusion: None, weights: vec![path] });
                        };
                        let weights = match file.ends_with(".index.json") {
                            true => shards(&path, folder, &mut find)?,
                            false => vec![path],
                        };
                        beside(folder, weights, &mut find)
                    }
                    None => usual(&mut find)?.ok_or_else(|| nothing(&self.to_string(), "")),
                }
            }
        }
    }
}

type Find<'a> = dyn FnMut(&str) -> Result<Option<PathBuf>> + 'a;

/// The weights in `folder`, and the files beside them that say what they are.
fn beside(folder: &str, weights: Vec<PathBuf>, find: &mut Find) -> Result<Located> {
    let mut json = |name: &str| find(&format!("{folder}{name}"));
    Ok(Located { config: json("config.json")?, diffusion: json(Diffusion::FILE)?, weights })
}

fn usual(find: &mut Find) -> Result<Option<Located>> {
    for folder in FOLDERS {
        for name in NAMES {
            let mut weights = find(&format!("{folder}{name}"))?.map(|path| vec![path]);
            if weights.is_none()
                && name.ends_with(".safetensors")
                && let Some(index) = find(&format!("{folder}{name}.index.json"))?
            {
                weights = Some(shards(&index, folder, find)?);
            }
            if let Some(weights) = weights {
                return beside(folder, weights, find).map(Some);
            }
        }
    }
    Ok(None)
}

fn in_folder(folder: &Path) -> Result<Located> {
    let mut find = |name: &str| Ok(Some(folder.join(name)).filter(|path| path.is_file()));
    if let Some(located) = usual(&mut find)? {
        return Ok(located);
    }
    let mut others = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if path.is_file() && path.extension().is_some_and(|e| e == "safetensors" || e == "pt") {
            others.push(path);
        }
    }
    others.sort();
    match others.len() {
        1 => beside("", others, &mut find),
        0 => Err(nothing(&folder.display().to_string(), "")),
        _ => {
            let names: Vec<_> = others.iter().filter_map(|p| p.file_name()?.to_str()).collect();
            Err(nothing(&folder.display().to_string(), &format!(", but several others ({})", names.join(", "))))
        }
    }
}

fn nothing(origin: &str, but: &str) -> Error {
    let problem = format!("holds none of {}{but}; name the weight file itself", NAMES.join(", "));
    Error::Weights { origin: origin.to_owned(), problems: vec![problem] }
}

/// The shards that an index names, each once.
fn shards(index: &Path, folder: &str, find: &mut Find) -> Result<Vec<PathBuf>> {
    let text = std::fs::read_to_string(index).map_err(|e| Error::io(index, e))?;
    let broken = |problems| Error::Weights { origin: index.display().to_string(), problems };
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| broken(vec![format!("no JSON: {e}")]))?;
    let map = json.get("weight_map").and_then(|map| map.as_object());
    let map = map.ok_or_else(|| broken(vec!["expected an object `weight_map` from tensors to files".into()]))?;
    let mut names: Vec<&str> = map.values().filter_map(|name| name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let (mut paths, mut problems) = (Vec::new(), Vec::new());
    for name in names {
        if !is_inside(name) || name.contains('/') {
            problems.push(format!("`{name}` is no file name; shards lie beside the index"));
            continue;
        }
        match find(&format!("{folder}{name}"))? {
            Some(path) => paths.push(path),
            None => problems.push(format!("shard {name} is missing")),
        }
    }
    if paths.is_empty() && problems.is_empty() {
        problems.push("names no shard".into());
    }
    if problems.is_empty() { Ok(paths) } else { Err(broken(problems)) }
}
