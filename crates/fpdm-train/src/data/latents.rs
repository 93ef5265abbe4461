//! Encoded data sets.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use fpdm_core::{Error, Moments, Result};
use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Batch, DataSource, Order};
use crate::checkpoint::{hex, sync_folder, write_file};

const INDEX: &str = "index.json";
/// The least log-variance that is stored: that of a codec that is certain is minus infinity.
const FLOOR: f64 = -30.;

/// What a folder of latent shards holds: `index.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentIndex {
    /// What the latents were encoded with.
    pub codec: String,
    /// What they were encoded from.
    pub source: String,
    /// Images of the source.
    pub images: usize,
    /// The names of the classes.
    pub classes: Vec<String>,
    /// The shards, in the order of the source.
    pub shards: Vec<ShardEntry>,
    /// Images that could not be decoded, with the reason.
    pub skipped: BTreeMap<String, String>,
}

/// One shard of a [`LatentIndex`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// Its file beside the index.
    pub file: String,
    /// The images of the source up to which it goes.
    pub end: usize,
    /// Samples in it.
    pub samples: usize,
    /// Its length.
    pub bytes: u64,
    /// Its checksum.
    pub sha256: String,
}

/// The samples of one shard, as they and their mirror images were encoded.
pub struct LatentShard {
    /// `(N, C, H, W)` each.
    pub upright: Moments,
    /// The same of the mirrored images.
    pub flipped: Moments,
    /// The class of each.
    pub classes: Vec<u32>,
}

impl LatentIndex {
    /// Reads the index of a folder, if it has one.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Config`] for an index that cannot be understood.
    pub fn read(folder: impl AsRef<Path>) -> Result<Option<Self>> {
        let path = folder.as_ref().join(INDEX);
        match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(path, e)),
            Ok(text) => Ok(Some(
                serde_json::from_slice(&text)
                    .map_err(|e| Error::config("data", format!("{}: {e}; encode it again", path.display())))?,
            )),
        }
    }

    /// Images of the source that are done: where encoding goes on.
    pub fn done(&self) -> usize {
        self.shards.last().map_or(0, |shard| shard.end)
    }

    /// Samples of all shards.
    pub fn samples(&self) -> usize {
        self.shards.iter().map(|shard| shard.samples).sum()
    }

    /// Writes a shard with the source's images up to `end` and then the index that has it.
    ///
    /// Both are written beside their places and renamed: whatever happens, the index names whole shards alone.
    pub fn append(&mut self, folder: impl AsRef<Path>, shard: &LatentShard, end: usize) -> Result<()> {
        let folder = folder.as_ref();
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let samples = shard.classes.len();
        let file = format!("latents-{:06}.safetensors", self.shards.len());
        let log_var = |m: &Moments| -> Result<Tensor> {
            Ok((m.std.to_dtype(DType::F32)?.log()? * 2.)?.clamp(FLOOR, f64::from(f32::MAX))?)
        };
        let half = |t: Tensor| -> Result<Tensor> { Ok(t.to_dtype(DType::F16)?.to_device(&Device::Cpu)?) };
        let tensors: BTreeMap<&str, Tensor> = [
            ("mean", half(shard.upright.mean.clone())?),
            ("log_var", half(log_var(&shard.upright)?)?),
            ("mean_flipped", half(shard.flipped.mean.clone())?),
            ("log_var_flipped", half(log_var(&shard.flipped)?)?),
            ("labels", Tensor::new(shard.classes.as_slice(), &Device::Cpu)?),
        ]
        .into();
        if tensors.values().any(|t| t.dims().first() != Some(&samples)) {
            return Err(Error::shape("a shard: samples of each part", samples, shard.upright.mean.dims()));
        }
        let bytes = safetensors::serialize(&tensors, None).map_err(Error::other)?;
        replace(folder, &file, &bytes)?;
        let sha256 = hex(&Sha256::digest(&bytes));
        self.shards.push(ShardEntry { file, end, samples, bytes: bytes.len() as u64, sha256 });
        self.write(folder)
    }

    /// Writes the index.
    pub fn write(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        replace(folder, INDEX, &serde_json::to_vec_pretty(self).map_err(Error::other)?)
    }
}

fn replace(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let (partial, path) = (folder.join(format!(".partial-{name}")), folder.join(name));
    let written =
        write_file(&partial, bytes).and_then(|()| fs::rename(&partial, &path).map_err(|e| Error::io(&path, e)));
    if let Err(error) = written {
        // The first error matters; what was left unfinished would only be in the way.
        let _ = fs::remove_file(&partial);
        return Err(error);
    }
    sync_folder(folder)
}

/// A folder of latent shards as training samples; each comes upright or mirrored by a fair coin.
pub struct LatentShards {
    index: LatentIndex,
    shards: Vec<Rows>,
    /// The sample at which each shard starts.
    starts: Vec<usize>,
    order: Order,
    device: Device,
}

impl LatentShards {
    /// Opens all shards of the index; batches are shuffled by `seed` and put on `device`.
    ///
    /// # Errors
    /// [`Error::Config`] that names a shard that is missing, truncated or no shard, or for an empty set.
    pub fn open(folder: impl AsRef<Path>, seed: u64, device: &Device) -> Result<Self> {
        let folder = folder.as_ref();
        let index = LatentIndex::read(folder)?.ok_or_else(|| {
            Error::config("data", format!("{} has no {INDEX}; encode a data set into it first", folder.display()))
        })?;
        let shards: Vec<Rows> =
            index.shards.iter().map(|entry| Rows::open(&folder.join(&entry.file), entry)).collect::<Result<_>>()?;
        let of = |rows: &Rows| rows.part("mean").map(|part| part.shape[1..].to_vec());
        for pair in shards.windows(2) {
            if of(&pair[0])? != of(&pair[1])? {
                return Err(damaged(&pair[1].path, "its latents have another shape than those of the shard before"));
            }
        }
        let starts = index.shards.iter().scan(0, |next, shard| {
            *next += shard.samples;
            Some(*next - shard.samples)
        });
        let starts = starts.collect();
        let order = Order::new(index.samples(), seed)?;
        Ok(Self { index, shards, starts, order, device: device.clone() })
    }

    /// What is in the folder.
    pub fn index(&self) -> &LatentIndex {
        &self.index
    }

    /// The shape `(C, H, W)` of a latent.
    pub fn shape(&self) -> Vec<usize> {
        self.shards
            .first()
            .and_then(|rows| rows.parts.get("mean"))
            .map_or_else(Vec::new, |part| part.shape[1..].to_vec())
    }

    /// Samples.
    pub fn len(&self) -> usize {
        self.index.samples()
    }

    /// Whether there is none, which [`LatentShards::open`] refuses.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same samples, shuffled by another seed.
    pub fn shuffled(mut self, seed: u64) -> Result<Self> {
        self.order = Order::new(self.len(), seed)?;
        Ok(self)
    }

    /// Reads all shards into memory, where a batch is a gather, and compares their checksums on the way.
    ///
    /// # Errors
    /// [`Error::Config`] that names the first corrupt shard.
    ///
    /// # Cost
    /// As many bytes as the shards have: 8 a value, for mean and log-variance of both flips in f16.
    pub fn into_memory(mut self) -> Result<Self> {
        for (rows, entry) in self.shards.iter_mut().zip(&self.index.shards) {
            let bytes = fs::read(&rows.path).map_err(|e| Error::io(&rows.path, e))?;
            if bytes.len() as u64 != entry.bytes || hex(&Sha256::digest(&bytes)) != entry.sha256 {
                return Err(damaged(&rows.path, "corrupt: its checksum is another"));
            }
            rows.keep(bytes)?;
        }
        Ok(self)
    }

    /// Reads every shard and compares its checksum.
    ///
    /// # Errors
    /// [`Error::Config`] that names the first corrupt shard.
    pub fn verify(&self) -> Result<()> {
        for (rows, entry) in self.shards.iter().zip(&self.index.shards) {
            let bytes = fs::read(&rows.path).map_err(|e| Error::io(&rows.path, e))?;
            if hex(&Sha256::digest(&bytes)) != entry.sha256 {
                return Err(damaged(&rows.path, "corrupt: its checksum is another"));
            }
        }
        Ok(())
    }
}

impl DataSource for LatentShards {
    fn batch(&self, index: u64, size: usize) -> Result<Batch> {
        let positions: Vec<u64> = (0..size as u64).map(|i| index * size as u64 + i).collect();
        let place = |&position: &u64| {
            let sample = self.order.at(position);
            let shard = self.starts.partition_point(|start| *start <= sample) - 1;
            (&self.shards[shard], sample - self.starts[shard], self.order.coin(position))
        };
        let places: Vec<_> = positions.iter().map(place).collect();
        let shape = [&[size], self.shape().as_slice()].concat();
        let len = shape[1..].iter().product::<usize>();
        let gather = |[upright, flipped]: [&str; 2], of: fn(&mut f32)| -> Result<Tensor> {
            let mut values = vec![0f32; size * len];
            for (row, &(rows, sample, mirrored)) in values.chunks_exact_mut(len).zip(&places) {
                rows.read(if mirrored { flipped } else { upright }, sample, row)?;
            }
            values.iter_mut().for_each(of);
            Ok(Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?.to_device(&self.device)?)
        };
        let mean = gather(["mean", "mean_flipped"], |_| {})?;
        let std = match places.iter().all(|(rows, ..)| rows.certain) {
            true => mean.zeros_like()?,
            false => gather(["log_var", "log_var_flipped"], deviation)?,
        };
        let classes = places.iter().map(|(rows, sample, _)| rows.label(*sample)).collect::<Result<Vec<_>>>()?;
        Ok(Batch { moments: Moments { mean, std }, y: Tensor::new(classes, &self.device)?, positions })
    }
}

/// The deviation of a stored log-variance; what is at its floor has none.
fn deviation(log_var: &mut f32) {
    *log_var = if *log_var <= FLOOR as f32 { 0. } else { (0.5 * *log_var).exp() };
}

/// The tensors of a safetensors file, a row at a time.
struct Rows {
    path: PathBuf,
    file: Mutex<File>,
    parts: BTreeMap<String, Part>,
    /// The whole file, if it is kept in memory.
    resident: Option<Vec<u8>>,
    /// Whether all variances are known to be nothing.
    certain: bool,
}

struct Part {
    dtype: DType,
    shape: Vec<usize>,
    offset: u64,
}

impl Rows {
    fn open(path: &Path, entry: &ShardEntry) -> Result<Self> {
        let mut file = match File::open(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(damaged(path, "missing")),
            file => file.map_err(|e| Error::io(path, e))?,
        };
        let len = file.metadata().map_err(|e| Error::io(path, e))?.len();
        if len != entry.bytes {
            return Err(damaged(path, &format!("truncated: {len} bytes of {}", entry.bytes)));
        }
        let mut size = [0; 8];
        file.read_exact(&mut size).map_err(|e| Error::io(path, e))?;
        let size = u64::from_le_bytes(size);
        if size > len - 8 {
            return Err(damaged(path, "no safetensors file"));
        }
        let mut text = vec![0; size as usize];
        file.read_exact(&mut text).map_err(|e| Error::io(path, e))?;
        let parts = parts(&text, 8 + size, len).ok_or_else(|| damaged(path, "no safetensors header"))?;
        let rows = Self { path: path.to_path_buf(), file: Mutex::new(file), parts, resident: None, certain: false };
        let first = rows.part("mean")?.shape.clone();
        for name in ["mean", "log_var", "mean_flipped", "log_var_flipped"] {
            let part = rows.part(name)?;
            let fits = part.shape == first && first.len() == 4 && first[0] == entry.samples && !first[1..].contains(&0);
            if !fits || part.dtype != DType::F16 {
                return Err(damaged(path, &format!("`{name}` is {:?} {:?}", part.dtype, part.shape)));
            }
        }
        let labels = rows.part("labels")?;
        if labels.shape != [entry.samples] || labels.dtype != DType::U32 {
            return Err(damaged(path, &format!("`labels` is {:?} {:?}", labels.dtype, labels.shape)));
        }
        Ok(rows)
    }

    fn part(&self, name: &str) -> Result<&Part> {
        self.parts.get(name).ok_or_else(|| damaged(&self.path, &format!("it has no `{name}`")))
    }

    /// Keeps the file's bytes.
    fn keep(&mut self, bytes: Vec<u8>) -> Result<()> {
        let floor = f16::from_f64(FLOOR).to_le_bytes();
        let nothing = |name: &str| -> Result<bool> {
            let part = self.part(name)?;
            let values = &bytes[part.offset as usize..][..2 * part.shape.iter().product::<usize>()];
            Ok(values.chunks_exact(2).all(|value| value == floor))
        };
        self.certain = nothing("log_var")? && nothing("log_var_flipped")?;
        self.resident = Some(bytes);
        Ok(())
    }

    /// Row `row` of `part`, of `len` bytes, to `take`.
    fn bytes<T>(&self, part: &Part, row: usize, len: usize, take: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let start = part.offset + (row * len) as u64;
        if let Some(bytes) = &self.resident {
            return Ok(take(&bytes[start as usize..][..len]));
        }
        let mut bytes = vec![0; len];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut read = || {
            file.seek(SeekFrom::Start(start))?;
            file.read_exact(&mut bytes)
        };
        read().map_err(|e| Error::io(&self.path, e))?;
        Ok(take(&bytes))
    }

    fn read(&self, name: &str, row: usize, values: &mut [f32]) -> Result<()> {
        self.bytes(self.part(name)?, row, 2 * values.len(), |bytes| {
            let pairs = bytes.chunks_exact(2);
            let halves: Vec<f16> = pairs.map(|pair| f16::from_le_bytes([pair[0], pair[1]])).collect();
            halves.convert_to_f32_slice(values);
        })
    }

    fn label(&self, row: usize) -> Result<u32> {
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte));
        self.bytes(self.part("labels")?, row, 4, number)
    }
}

/// The tensors that a header lists, if it is one.
fn parts(header: &[u8], start: u64, end: u64) -> Option<BTreeMap<String, Part>> {
    #[derive(Deserialize)]
    struct Listed {
        dtype: String,
        shape: Vec<usize>,
        data_offsets: [u64; 2],
    }
    let listed: BTreeMap<String, Listed> = serde_json::from_slice(header).ok()?;
    let part = |(name, Listed { dtype, shape, data_offsets: [from, to] }): (String, Listed)| {
        let dtype = match dtype.as_str() {
            "F16" => DType::F16,
            "U32" => DType::U32,
            _ => return None,
        };
        let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
        let fits = to.checked_sub(from)? == (elements as u64).checked_mul(dtype.size_in_bytes() as u64)?;
        (fits && start.checked_add(to)? <= end).then_some((name, Part { dtype, shape, offset: start + from }))
    };
    listed.into_iter().map(part).collect()
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::config("data", format!("{}: {what}; remove its entry from {INDEX} or encode it again", path.display()))
}
