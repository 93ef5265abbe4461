//! The published folders of features and labels.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use fpdm_core::{Error, Moments, Result};

use super::{Batch, DataSource, Order};

/// Latents as one `.npy` file each and labels as another, in two folders, matched by file name.
///
/// Features are `(1, C, H, W)` or `(C, H, W)`, labels one number. The published trainer pairs the two folders by the
/// order in which the system lists them, which mixes labels up.
pub struct NpyFolders {
    samples: Vec<(PathBuf, PathBuf)>,
    order: Order,
    device: Device,
}

impl NpyFolders {
    /// Lists both folders; batches are shuffled by `seed` and put on `device`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Config`] that names a file without its counterpart, or for empty folders.
    pub fn open(features: impl AsRef<Path>, labels: impl AsRef<Path>, seed: u64, device: &Device) -> Result<Self> {
        let (features, labels) = (features.as_ref(), labels.as_ref());
        let (found, mut of) = (list(features)?, list(labels)?);
        let mut samples = Vec::with_capacity(found.len());
        for (name, path) in found {
            let Some(label) = of.remove(&name) else {
                let why = format!("{} has no {name} in {}", path.display(), labels.display());
                return Err(Error::config("data", why));
            };
            samples.push((path, label));
        }
        if let Some(label) = of.values().next() {
            return Err(Error::config("data", format!("{} has no feature in {}", label.display(), features.display())));
        }
        let order = Order::new(samples.len(), seed)?;
        Ok(Self { samples, order, device: device.clone() })
    }

    /// The shape `(C, H, W)` of a latent: that of the first.
    ///
    /// # Errors
    /// A file that cannot be read, by name.
    pub fn shape(&self) -> Result<Vec<usize>> {
        Ok(self.sample(0)?.0.dims().to_vec())
    }

    /// Samples.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there is none, which [`NpyFolders::open`] refuses.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    fn sample(&self, index: usize) -> Result<(Tensor, u32)> {
        let (feature, label) = &self.samples[index];
        let feature_of = || -> Result<Tensor> {
            let tensor = Tensor::read_npy(feature)?.to_dtype(DType::F32)?;
            match tensor.rank() {
                3 => Ok(tensor),
                4 if tensor.dim(0)? == 1 => Ok(tensor.squeeze(0)?),
                _ => Err(Error::shape("features", "(1, C, H, W) or (C, H, W)", tensor.dims())),
            }
        };
        let label_of = || -> Result<u32> {
            let values = Tensor::read_npy(label)?.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
            match values[..] {
                [value] if value >= 0. && value.fract() == 0. && value <= f64::from(u32::MAX) => Ok(value as u32),
                _ => Err(Error::config("labels", format!("{values:?} is no class"))),
            }
        };
        let named = |path: &Path, e: Error| Error::config("data", format!("{}: {e}", path.display()));
        Ok((feature_of().map_err(|e| named(feature, e))?, label_of().map_err(|e| named(label, e))?))
    }
}

impl DataSource for NpyFolders {
    fn batch(&self, index: u64, size: usize) -> Result<Batch> {
        let positions: Vec<u64> = (0..size as u64).map(|i| index * size as u64 + i).collect();
        let samples = positions.iter().map(|&p| self.sample(self.order.at(p))).collect::<Result<Vec<_>>>()?;
        let (features, labels): (Vec<_>, Vec<_>) = samples.into_iter().unzip();
        let mean = Tensor::stack(&features, 0)?.to_device(&self.device)?;
        let moments = Moments { std: mean.zeros_like()?, mean };
        Ok(Batch { moments, y: Tensor::new(labels, &self.device)?, positions })
    }
}

fn list(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if path.extension().is_some_and(|ending| ending == "npy") {
            found.insert(path.file_name().unwrap_or_default().to_string_lossy().into_owned(), path);
        }
    }
    Ok(found)
}
