//! The zip around the pickle, and the elements of the tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use zip::{CompressionMethod, ZipArchive};

use super::machine;
use super::state;
use super::value::{Arena, Value, View};
use crate::checkpoint::Which;
use crate::checkpoint::container::{Container, broken};
use crate::{Error, Result};

/// A hundred times what the largest published checkpoint has.
const MAX_PICKLE: u64 = 64 << 20;

type Zip = ZipArchive<BufReader<File>>;

/// The weights of a `torch.save` archive.
pub(in crate::checkpoint) struct Torch {
    path: PathBuf,
    zip: Mutex<Zip>,
    shapes: BTreeMap<String, Vec<usize>>,
    places: BTreeMap<String, Place>,
}

/// Where the elements of a tensor are, checked to be there.
struct Place {
    entry: String,
    dtype: DType,
    /// Elements of the storage.
    len: usize,
    offset: usize,
    shape: Vec<usize>,
    stride: Vec<usize>,
    count: usize,
}

impl Torch {
    /// Reads the pickle and checks every tensor of the wanted weights against the archive; elements are read later.
    pub(in crate::checkpoint) fn open(path: &Path, which: Which) -> Result<Self> {
        let bad = |why: String| broken(path.display(), why);
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let mut zip = ZipArchive::new(BufReader::new(file)).map_err(|e| bad(format!("a broken archive: {e}")))?;
        let pickles: Vec<String> = zip
            .file_names()
            .filter_map(|name| Some(name.ok()?.into_owned()))
            .filter(|name| {
                name.strip_suffix("data.pkl").is_some_and(|f| f.ends_with('/') && f.matches('/').count() == 1)
            })
            .collect();
        let [pickle] = pickles.as_slice() else {
            return Err(bad(format!("expected one */data.pkl as torch.save writes, got {}", pickles.len())));
        };
        let folder = pickle.trim_end_matches("data.pkl").to_owned();
        if let Ok(mut order) = zip.by_name(&format!("{folder}byteorder")) {
            let mut text = String::new();
            if order.by_ref().take(16).read_to_string(&mut text).is_err() || text.trim() != "little" {
                return Err(bad("byte order is not little; save it again on another machine".into()));
            }
        }
        let (arena, root) = {
            let entry = zip.by_name(pickle).map_err(|e| bad(format!("{pickle}: {e}")))?;
            let mut bytes = Vec::new();
            entry.take(MAX_PICKLE + 1).read_to_end(&mut bytes).map_err(|e| bad(format!("{pickle}: {e}")))?;
            if bytes.len() as u64 > MAX_PICKLE {
                return Err(bad(format!("{pickle} is larger than {MAX_PICKLE} bytes; no weights need that")));
            }
            machine::run(&bytes).map_err(bad)?
        };
        let views = state::tensors(&arena, root, which).map_err(bad)?;
        let (mut places, mut problems) = (BTreeMap::new(), BTreeSet::new());
        for (name, view) in views {
            match place(&mut zip, &arena, &folder, &view) {
                Ok(place) => drop(places.insert(name, place)),
                Err(why) => drop(problems.insert(format!("{name}: {why}"))),
            }
        }
        if !problems.is_empty() {
            let problems = problems.into_iter().collect();
            return Err(Error::Weights { origin: path.display().to_string(), problems });
        }
        let shapes = places.iter().map(|(name, place)| (name.clone(), place.shape.clone())).collect();
        Ok(Self { path: path.to_path_buf(), zip: Mutex::new(zip), shapes, places })
    }
}

/// Checks a tensor against its storage, and the storage against the archive.
fn place(zip: &mut Zip, arena: &Arena, folder: &str, view: &View) -> Result<Place, String> {
    let Value::Storage { class, key, len } = arena.get(view.storage) else {
        return Err("its storage is none".into());
    };
    let dtype = match class.as_str() {
        "torch.FloatStorage" => DType::F32,
        "torch.HalfStorage" => DType::F16,
        "torch.BFloat16Storage" => DType::BF16,
        "torch.DoubleStorage" => DType::F64,
        "torch.LongStorage" => DType::I64,
        "torch.IntStorage" => DType::I32,
        "torch.ShortStorage" => DType::I16,
        "torch.ByteStorage" => DType::U8,
        other => return Err(format!("{other} is not supported; save it as float32")),
    };
    let size = dtype.size_in_bytes();
    let entry = format!("{folder}data/{key}");
    let stored = zip.by_name(&entry).map_err(|e| format!("{entry}: {e}"))?;
    if stored.compression() != CompressionMethod::Stored {
        return Err(format!("{entry} is compressed; torch.save does not do that, pack it again"));
    }
    let bytes = len.checked_mul(size as u64);
    if bytes != Some(stored.size()) || stored.size() != stored.compressed_size() {
        return Err(format!("{entry}: expected {len} elements of {size} bytes, got {} bytes", stored.size()));
    }
    let small = |values: &[u64]| values.iter().map(|&v| usize::try_from(v)).collect::<Result<Vec<_>, _>>();
    let too_big = || format!("shape {:?} with stride {:?} is too large", view.shape, view.stride);
    let (Ok(shape), Ok(stride), Ok(len)) = (small(&view.shape), small(&view.stride), usize::try_from(*len)) else {
        return Err(too_big());
    };
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(too_big)?;
    // An expanded tensor may be of any size: nobody's weights, and a way to fill the memory.
    if count > len {
        return Err(format!("{count} elements in a storage of {len}; save a contiguous copy"));
    }
    let offset = usize::try_from(view.offset).map_err(|_| too_big())?;
    if count > 0 {
        let last = shape.iter().zip(&stride).try_fold(offset, |at, (&d, &s)| at.checked_add((d - 1).checked_mul(s)?));
        if last.is_none_or(|last| last >= len) {
            return Err(format!("offset {offset}, shape {shape:?}, stride {stride:?} reach past a storage of {len}"));
        }
    }
    Ok(Place { entry, dtype, len, offset, shape, stride, count })
}

impl Place {
    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.stride).rev().all(|(&d, &s)| {
            let fits = d == 1 || s == expected;
            expected *= d;
            fits
        })
    }

    /// Bytes of the elements in row-major order, out of those of the whole storage.
    fn gather(&self, storage: &[u8]) -> Vec<u8> {
        let size = self.dtype.size_in_bytes();
        let mut out = Vec::with_capacity(self.count * size);
        let mut index = vec![0; self.shape.len()];
        for _ in 0..self.count {
            let at = self.offset + index.iter().zip(&self.stride).map(|(i, s)| i * s).sum::<usize>();
            out.extend_from_slice(&storage[at * size..(at + 1) * size]);
            for (i, d) in index.iter_mut().zip(&self.shape).rev() {
                *i += 1;
                if *i < *d {
                    break;
                }
                *i = 0;
            }
        }
        out
    }
}

impl Container for Torch {
    fn shapes(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.shapes
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        let bad = |why: String| broken(self.path.display(), format!("{name}: {why}"));
        let place = self.places.get(name).ok_or_else(|| bad("it is missing".into()))?;
        let size = place.dtype.size_in_bytes();
        let mut zip = self.zip.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entry = zip.by_name(&place.entry).map_err(|e| bad(e.to_string()))?;
        let mut bytes = Vec::new();
        if place.is_contiguous() && place.count < place.len {
            // One of many in a shared storage: only its part, which has no checksum of its own.
            let start = entry.data_start().ok_or_else(|| bad("its data has no place in the archive".into()))?;
            let mut file = File::open(&self.path).map_err(|e| Error::io(&self.path, e))?;
            file.seek(SeekFrom::Start(start.saturating_add((place.offset * size) as u64)))
                .map_err(|e| Error::io(&self.path, e))?;
            file.take((place.count * size) as u64).read_to_end(&mut bytes).map_err(|e| Error::io(&self.path, e))?;
        } else {
            entry
                .by_ref()
                .take((place.len * size) as u64 + 1)
                .read_to_end(&mut bytes)
                .map_err(|e| bad(e.to_string()))?;
            if bytes.len() == place.len * size && !place.is_contiguous() {
                bytes = place.gather(&bytes);
            }
        }
        if bytes.len() != place.count * size {
            return Err(bad(format!(
                "expected {} bytes, got {}; the file is cut short",
                place.count * size,
                bytes.len()
            )));
        }
        Ok(Tensor::from_raw_buffer(&bytes, place.dtype, &place.shape, &Device::Cpu)?)
    }
}
