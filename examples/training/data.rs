//! Where a run's samples come from, from the command line.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use candle_core::Device;
use clap::ValueEnum;
use fpdm_train::{DataSource, LatentShards, Normalisation, Normalised};

/// What latents are divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Normalise {
    /// Nothing: they are as the codec has them.
    None,
    /// The deviation of all.
    Std,
    /// The deviation of each channel, after its mean has been subtracted.
    Channels,
}

/// A source and what a network must know of it.
pub(crate) struct Data {
    /// Batches, on the CPU.
    pub source: Arc<dyn DataSource>,
    /// The shape `(C, H, W)` of a latent.
    pub shape: Vec<usize>,
    /// Classes.
    pub classes: usize,
    /// Samples.
    pub samples: usize,
    /// What was done to the codec's latents, if anything.
    pub normalisation: Option<Normalisation>,
}

impl Data {
    /// Opens a folder of latent shards, reads it into memory unless told not to, and measures it.
    pub(crate) fn open(folder: &Path, seed: u64, in_memory: bool, normalise: Normalise) -> Result<Self> {
        let mut shards = LatentShards::open(folder, 0, &Device::Cpu)?;
        if in_memory {
            shards = shards.into_memory()?;
        } else {
            shards.verify()?;
        }
        let (shape, classes, samples) = (shards.shape(), shards.index().classes.len(), shards.len());
        if samples == 0 || shape.len() != 3 {
            bail!("{} holds no latents", folder.display());
        }
        let normalisation = match normalise {
            Normalise::None => None,
            // Two epochs, so that about as many samples are upright as mirrored; of seed 0, whatever the run's.
            _ => Some(Normalisation::measure(&shards, 2 * samples, normalise == Normalise::Channels)?),
        };
        let shards = shards.shuffled(seed)?;
        let source: Arc<dyn DataSource> = match &normalisation {
            Some(by) => Arc::new(Normalised::new(shards, by.clone())?),
            None => Arc::new(shards),
        };
        Ok(Self { source, shape, classes, samples, normalisation })
    }
}
