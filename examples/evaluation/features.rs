//! Features, computed once.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use fpdm_core::checkpoint::write_safetensors;
use fpdm_eval::{FeatureExtractor, Features};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::set::Set;

/// The network, and where features are kept.
pub(crate) struct Extractor {
    pub(crate) network: Box<dyn FeatureExtractor>,
    /// The checksum of its weights.
    weights: Vec<u8>,
    cache: PathBuf,
    batch_size: usize,
}

impl Extractor {
    /// Opens `weights`, which compute on `device`, so many pictures at a time.
    pub(crate) fn open(
        features: Features,
        weights: &str,
        cache: PathBuf,
        batch_size: usize,
        device: &Device,
    ) -> Result<Self> {
        let (network, path) = fpdm_eval::open(features, weights, device)?;
        let weights = checksum(&path).with_context(|| path.display().to_string())?;
        Ok(Self { network, weights, cache, batch_size })
    }

    /// What distances must be named by.
    pub(crate) fn name(&self) -> &'static str {
        self.network.name()
    }

    /// `(N, D)`, from the cache if the same pictures have been seen by the same network.
    pub(crate) fn features(&self, set: &Set) -> Result<Tensor> {
        let mut hash = Sha256::new();
        hash.update(self.name().as_bytes());
        hash.update(&self.weights);
        set.digest(&mut hash)?;
        let key: String = hash.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        let path = self.cache.join(format!("features-{key}.safetensors"));
        if path.exists() {
            return self.kept(&path, set.len()).with_context(|| format!("{}: remove it", path.display()));
        }
        std::fs::create_dir_all(&self.cache).with_context(|| self.cache.display().to_string())?;
        let features = self.compute(set)?;
        write_safetensors(&path, &[("features".to_owned(), features.clone())])?;
        Ok(features)
    }

    fn kept(&self, path: &Path, len: usize) -> Result<Tensor> {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
        let features = tensors.get("features").context("it has no `features`")?;
        let expected = [len, self.network.width()];
        anyhow::ensure!(features.dims() == expected, "its features are {:?}, not {expected:?}", features.dims());
        Ok(features.to_dtype(DType::F32)?)
    }

    fn compute(&self, set: &Set) -> Result<Tensor> {
        let bar = ProgressBar::new(set.len() as u64).with_message(set.name.clone());
        bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {eta} left {msg}")?);
        let mut parts = Vec::new();
        for start in (0..set.len()).step_by(self.batch_size) {
            let range = start..(start + self.batch_size).min(set.len());
            let embedded = set.pixels(range.clone()).and_then(|pictures| self.embed(&pictures));
            parts.push(embedded.with_context(|| format!("{} or one behind it", set.entry(start)))?);
            bar.inc(range.len() as u64);
        }
        bar.finish();
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// Pictures `(1, 3, H, W)` in [-1, 1] → `(N, D)` on the CPU.
    fn embed(&self, pictures: &[Tensor]) -> Result<Tensor> {
        // One by one: pictures may differ in size until here.
        let prepared: Vec<Tensor> =
            pictures.par_iter().map(|x| self.network.prepare(x)).collect::<fpdm_eval::Result<_>>()?;
        Ok(self.network.embed(&Tensor::cat(&prepared, 0)?)?.to_device(&Device::Cpu)?)
    }
}

fn checksum(path: &Path) -> std::io::Result<Vec<u8>> {
    let (mut file, mut hash, mut buffer) = (std::fs::File::open(path)?, Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().to_vec()),
            n => hash.update(&buffer[..n]),
        }
    }
}
