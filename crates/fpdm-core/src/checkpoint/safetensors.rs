//! Safetensors: memory-mapped, one file or several shards; or in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::safetensors::{Load, MmapedSafetensors};
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;

use super::container::{Container, broken};
use crate::{Error, Result};

/// The tensors of one or several files.
pub(crate) struct Safetensors {
    shards: Vec<(PathBuf, MmapedSafetensors)>,
    shapes: BTreeMap<String, Vec<usize>>,
    shard_of: BTreeMap<String, usize>,
}

impl Safetensors {
    /// Maps the files and reads their headers. The `safetensors` crate checks that the tensors fill the file without
    /// overlap; a name in two shards is refused here.
    pub(crate) fn open<P: AsRef<Path>>(paths: &[P]) -> Result<Self> {
        let mut this = Self { shards: Vec::new(), shapes: BTreeMap::new(), shard_of: BTreeMap::new() };
        for path in paths.iter().map(AsRef::as_ref) {
            // Candle's error has the path, but not the variant.
            std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
            // SAFETY: the mapping is read only. As with every mapped file, another process that shortens it while it
            // is in use would make reads fault; files written by this crate are replaced by a rename, never shortened.
            #[allow(unsafe_code)]
            let mapped = unsafe { MmapedSafetensors::new(path) };
            let mapped = mapped.map_err(|e| {
                broken(path.display(), format!("no safetensors: {}; copy or fetch the file again", cause(&e)))
            })?;
            for (name, view) in mapped.tensors() {
                if let Some(other) = this.shard_of.insert(name.clone(), this.shards.len()) {
                    let other = this.shards[other].0.display();
                    return Err(broken(path.display(), format!("{name} is also in {other}")));
                }
                this.shapes.insert(name, view.shape().to_vec());
            }
            this.shards.push((path.to_path_buf(), mapped));
        }
        Ok(this)
    }
}

impl Container for Safetensors {
    fn shapes(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.shapes
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        let Some(&shard) = self.shard_of.get(name) else {
            return Err(broken("safetensors", format!("{name} is missing")));
        };
        let (path, mapped) = &self.shards[shard];
        mapped
            .get(name)
            .and_then(|view| view.load(&Device::Cpu))
            .map_err(|e| broken(path.display(), format!("{name}: {}", cause(&e))))
    }
}

/// The tensors of one file that is already in memory.
pub(crate) struct Buffered {
    origin: String,
    bytes: Box<dyn AsRef<[u8]> + Send + Sync>,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl Buffered {
    /// Reads the header.
    pub(crate) fn open(origin: &str, bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Self> {
        let file = SafeTensors::deserialize(bytes.as_ref())
            .map_err(|e| broken(origin, format!("no safetensors: {e}; copy or fetch the file again")))?;
        let shapes = file.iter().map(|(name, view)| (name.to_owned(), view.shape().to_vec())).collect();
        drop(file);
        Ok(Self { origin: origin.to_owned(), bytes: Box::new(bytes), shapes })
    }
}

impl Container for Buffered {
    fn shapes(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.shapes
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        // The header is read again, which costs little beside a tensor and spares a borrow of oneself.
        let file = SafeTensors::deserialize((*self.bytes).as_ref()).map_err(|e| broken(&self.origin, e.to_string()))?;
        let view = file.tensor(name).map_err(|e| broken(&self.origin, e.to_string()))?;
        view.load(&Device::Cpu).map_err(|e| broken(&self.origin, format!("{name}: {}", cause(&e))))
    }
}

/// Without the path, which our own error has, and without a backtrace.
fn cause(error: &candle_core::Error) -> String {
    match error {
        candle_core::Error::WithPath { inner, .. } | candle_core::Error::WithBacktrace { inner, .. } => cause(inner),
        other => other.to_string().lines().next().unwrap_or_default().to_owned(),
    }
}
