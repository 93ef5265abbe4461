//! Everything that a run is, on disk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use fpdm_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

const STATE: &str = "state.json";
const WEIGHTS: &str = "weights.safetensors";
const OPTIMISER: &str = "optimiser.safetensors";
const PARTIAL: &str = ".partial-";
const FORMAT: u32 = 1;

/// Everything that the next step depends on. Random streams and the place in the data are functions of `step` and of
/// the seed in `settings`.
#[derive(Clone, Debug)]
pub struct State {
    /// Steps done.
    pub step: u64,
    /// Wall-clock time that they took.
    pub seconds: f64,
    /// The configuration of the run.
    pub settings: Value,
    /// Master weights by name, f32.
    pub weights: BTreeMap<String, Tensor>,
    /// The optimiser's mean of gradients by name, f32.
    pub exp_avg: BTreeMap<String, Tensor>,
    /// The optimiser's mean of squared gradients by name, f32.
    pub exp_avg_sq: BTreeMap<String, Tensor>,
    /// Averaged weights by decay, f32.
    pub ema: Vec<(f64, BTreeMap<String, Tensor>)>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    step: u64,
    #[serde(default)]
    seconds: f64,
    settings: Value,
    ema: Vec<f64>,
    /// Checksums of the other files.
    files: BTreeMap<String, Checksum>,
}

#[derive(Serialize, Deserialize, PartialEq)]
struct Checksum {
    bytes: u64,
    sha256: String,
}

impl State {
    /// Writes the state to `folder/step-N` and removes all but the newest `keep` checkpoints there.
    ///
    /// The checkpoint is written beside its place, flushed to the disk and renamed: it is whole or not there. One of
    /// the same step and settings that is there already is left as it is.
    ///
    /// # Errors
    /// [`Error::Io`] where the disk is full or refuses; older checkpoints are then as they were. [`Error::Config`] for
    /// `keep` 0, or a checkpoint of the same step with other settings.
    pub fn save(&self, folder: impl AsRef<Path>, keep: usize) -> Result<PathBuf> {
        let folder = folder.as_ref();
        if keep == 0 {
            return Err(Error::config("keep", "0 keeps nothing to resume from; use 1 or more"));
        }
        let name = format!("step-{:010}", self.step);
        let path = folder.join(&name);
        if path.exists() {
            compare(&path, &header(&path)?.settings, &self.settings)?;
            return Ok(path);
        }
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        sweep(folder)?;
        let partial = folder.join(format!("{PARTIAL}{name}"));
        let written = self.write(&partial).and_then(|()| {
            fs::rename(&partial, &path).map_err(|e| Error::io(&path, e))?;
            sync_folder(folder)
        });
        if let Err(error) = written {
            // What was left unfinished would only be in the way; the error that matters is the first.
            let _ = fs::remove_dir_all(&partial);
            return Err(error);
        }
        let all = list(folder)?;
        for (_, old) in &all[..all.len().saturating_sub(keep)] {
            remove(folder, old)?;
        }
        Ok(path)
    }

    fn write(&self, path: &Path) -> Result<()> {
        fs::create_dir(path).map_err(|e| Error::io(path, e))?;
        let mut files = BTreeMap::new();
        let mut put = |name: String, tensors: &BTreeMap<String, Tensor>| -> Result<()> {
            let bytes = safetensors::serialize(tensors, None).map_err(Error::other)?;
            write_file(&path.join(&name), &bytes)?;
            files.insert(name, Checksum { bytes: bytes.len() as u64, sha256: hex(&Sha256::digest(&bytes)) });
            Ok(())
        };
        put(WEIGHTS.into(), &self.weights)?;
        let moments = [("exp_avg", &self.exp_avg), ("exp_avg_sq", &self.exp_avg_sq)];
        let moments = moments.iter().flat_map(|(prefix, of)| of.iter().map(move |(n, t)| (format!("{prefix}.{n}"), t)));
        put(OPTIMISER.into(), &moments.map(|(name, t)| (name, t.clone())).collect())?;
        for (decay, weights) in &self.ema {
            put(ema_file(*decay), weights)?;
        }
        let ema = self.ema.iter().map(|(decay, _)| *decay).collect();
        let header = Header {
            format: FORMAT,
            step: self.step,
            seconds: self.seconds,
            settings: self.settings.clone(),
            ema,
            files,
        };
        let text = serde_json::to_vec_pretty(&header).map_err(Error::other)?;
        write_file(&path.join(STATE), &text)?;
        sync_folder(path)
    }

    /// Reads a checkpoint and verifies its checksums.
    ///
    /// # Errors
    /// [`Error::Io`] for what cannot be read; [`Error::Weights`] that names each file that is missing, truncated or
    /// corrupt.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let header = header(path)?;
        let mut tensors: BTreeMap<&str, BTreeMap<String, Tensor>> = BTreeMap::new();
        let mut problems = Vec::new();
        for (name, checksum) in &header.files {
            match read_file(&path.join(name), checksum) {
                Ok(found) => {
                    tensors.insert(name, found);
                }
                Err(why) => problems.push(format!("{name}: {why}")),
            }
        }
        if !problems.is_empty() {
            problems.push("resume from an older checkpoint".into());
            return Err(Error::Weights { origin: path.display().to_string(), problems });
        }
        let mut take = |name: &str| tensors.remove(name).ok_or_else(|| absent(path, name));
        let (mut exp_avg, mut exp_avg_sq) = (BTreeMap::new(), BTreeMap::new());
        for (name, tensor) in take(OPTIMISER)? {
            match (name.strip_prefix("exp_avg."), name.strip_prefix("exp_avg_sq.")) {
                (Some(name), _) => exp_avg.insert(name.to_owned(), tensor),
                (_, Some(name)) => exp_avg_sq.insert(name.to_owned(), tensor),
                _ => return Err(absent(path, &name)),
            };
        }
        let ema = header.ema.iter().map(|&decay| Ok((decay, take(&ema_file(decay))?))).collect::<Result<_>>()?;
        let weights = take(WEIGHTS)?;
        let Header { step, seconds, settings, .. } = header;
        Ok(Self { step, seconds, settings, weights, exp_avg, exp_avg_sq, ema })
    }

    /// Refuses a state of another configuration than `settings`.
    ///
    /// # Errors
    /// [`Error::Config`] with every field that differs and both values.
    pub fn check_settings(&self, settings: &Value) -> Result<()> {
        compare(Path::new("checkpoint"), &self.settings, settings)
    }
}

/// The newest checkpoint in `folder`, if there is one.
pub fn latest_checkpoint(folder: impl AsRef<Path>) -> Result<Option<PathBuf>> {
    Ok(list(folder.as_ref())?.pop().map(|(_, path)| path))
}

/// Checkpoints, oldest first.
fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| Error::io(folder, e))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        let name = entry.file_name();
        if let Some(step) = name.to_str().and_then(|n| n.strip_prefix("step-")).and_then(|n| n.parse().ok()) {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Removes what an interrupted run has left.
fn sweep(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            fs::remove_dir_all(entry.path()).map_err(|e| Error::io(entry.path(), e))?;
        }
    }
    Ok(())
}

/// Removes a checkpoint under another name, so that half of it is never taken for a checkpoint.
fn remove(folder: &Path, path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let away = folder.join(format!("{PARTIAL}old-{name}"));
    fs::rename(path, &away).map_err(|e| Error::io(path, e))?;
    fs::remove_dir_all(&away).map_err(|e| Error::io(&away, e))
}

fn header(path: &Path) -> Result<Header> {
    let file = path.join(STATE);
    let text = fs::read(&file).map_err(|e| Error::io(&file, e))?;
    let header: Header = serde_json::from_slice(&text).map_err(|e| {
        let problems = vec![format!("{STATE}: {e}"), "resume from an older checkpoint".into()];
        Error::Weights { origin: path.display().to_string(), problems }
    })?;
    if header.format != FORMAT {
        let why = format!("{} of {} is not {FORMAT}; use the version that wrote it", header.format, path.display());
        return Err(Error::config("format", why));
    }
    Ok(header)
}

fn read_file(path: &Path, checksum: &Checksum) -> Result<BTreeMap<String, Tensor>, String> {
    let bytes = fs::read(path).map_err(|e| e.to_string())?;
    if bytes.len() as u64 != checksum.bytes {
        return Err(format!("{} bytes of {}: truncated", bytes.len(), checksum.bytes));
    }
    if hex(&Sha256::digest(&bytes)) != checksum.sha256 {
        return Err("corrupt: its checksum is another".into());
    }
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).map_err(|e| e.to_string())?;
    Ok(tensors.into_iter().collect())
}

fn absent(path: &Path, name: &str) -> Error {
    Error::Weights { origin: path.display().to_string(), problems: vec![format!("{name} is not part of it")] }
}

fn ema_file(decay: f64) -> String {
    format!("ema-{decay}.safetensors")
}

/// Writes a file and waits until it is on the disk.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|e| Error::io(path, e))
}

/// Makes renames in a folder permanent; where folders cannot be opened, as on Windows, the system sees to it.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    match File::open(path) {
        Ok(folder) if cfg!(unix) => folder.sync_all().map_err(|e| Error::io(path, e)),
        _ => Ok(()),
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn compare(path: &Path, stored: &Value, wanted: &Value) -> Result<()> {
    let mut differences = Vec::new();
    differ("", stored, wanted, &mut differences);
    if differences.is_empty() {
        return Ok(());
    }
    let why = format!("{} has other ones: {}; use the same, or another folder", path.display(), differences.join(", "));
    Err(Error::config("settings", why))
}

fn differ(at: &str, a: &Value, b: &Value, found: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let keys: std::collections::BTreeSet<&String> = x.keys().chain(y.keys()).collect();
            for key in keys {
                let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                differ(&at, x.get(key).unwrap_or(&Value::Null), y.get(key).unwrap_or(&Value::Null), found);
            }
        }
        _ if a == b => {}
        _ => found.push(format!("{at} is {a} there and {b} here")),
    }
}
