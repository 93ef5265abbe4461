//! What a step needs from the host.

use candle_core::{DType, Device, Tensor};
use fpdm_core::dit::Labels;
use fpdm_core::rng::{self, Stream};
use fpdm_core::{Level, Result};
use rand::Rng;

use super::Objective;
use crate::{Batch, DataSource};

/// Clean latents and the noise that they are to be mixed with.
#[derive(Clone, Debug)]
pub struct Pairs {
    /// The noise level of each sample.
    pub levels: Vec<Level>,
    /// Clean latents `(B, C, H, W)`, f32.
    pub x0: Tensor,
    /// Noise like them.
    pub eps: Tensor,
    /// Labels, some of them null.
    pub y: Tensor,
}

impl Pairs {
    /// The same on a device. Class numbers stay where they are: a network looks at them on the host before it uses them
    /// as addresses, and fetching them back would make the host wait.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let Self { levels, x0, eps, y } = self;
        Ok(Self { levels: levels.clone(), x0: x0.to_device(device)?, eps: eps.to_device(device)?, y: y.clone() })
    }
}

/// How a run makes [`Pairs`] of its data: a pure function of the number of the batch, which threads can compute ahead.
#[derive(Clone)]
pub struct Recipe {
    pub(crate) objective: Objective,
    pub(crate) labels: Labels,
    pub(crate) seed: u64,
    pub(crate) batch_size: usize,
}

impl Recipe {
    /// The pairs of batch number `index`.
    pub fn pairs(&self, source: &dyn DataSource, index: u64) -> Result<Pairs> {
        self.objective.pairs(&source.batch(index, self.batch_size)?, self.labels, self.seed)
    }
}

impl Objective {
    /// Times and noise of a batch, and its labels with some dropped.
    ///
    /// Sample `i` draws from streams of its own, numbered by [`Batch::positions`]: what it gets depends neither on the
    /// size of the batch nor on what was drawn before.
    ///
    /// # Errors
    /// [`Error::Shape`](fpdm_core::Error::Shape) and [`Error::Config`](fpdm_core::Error::Config) for a batch whose
    /// parts or labels do not fit `labels`.
    pub fn pairs(&self, batch: &Batch, labels: Labels, seed: u64) -> Result<Pairs> {
        batch.check(labels)?;
        let (mean, device) = (batch.moments.mean.to_dtype(DType::F32)?, batch.moments.mean.device());
        let shape = &mean.dims()[1..];
        let mut rngs: Vec<_> = batch.positions.iter().map(|&p| rng::stream(seed, Stream::Noise, p)).collect();
        // The first numbers of a stream place the latent in its distribution, the next are the noise.
        let std = batch.moments.std.to_dtype(DType::F32)?;
        let place = rng::normal_each(&mut rngs, shape, DType::F32, device)?;
        let x0 = (&mean + (std * place)?)?;
        let eps = rng::normal_each(&mut rngs, shape, DType::F32, device)?;

        let span = self.schedule.span();
        let level = |&p: &u64| self.schedule.level(self.times.draw(span, &mut rng::stream(seed, Stream::Time, p)));
        let levels = batch.positions.iter().map(level).collect::<Result<Vec<_>>>()?;
        let drop = |&p: &u64| rng::stream(seed, Stream::Drop, p).random::<f64>() < self.label_dropout;
        let dropped: Vec<bool> = batch.positions.iter().map(drop).collect();
        Ok(Pairs { levels, x0, eps, y: drop_labels(&batch.y, &dropped, labels)? })
    }
}

fn drop_labels(y: &Tensor, dropped: &[bool], labels: Labels) -> Result<Tensor> {
    if !dropped.contains(&true) {
        return Ok(y.clone());
    }
    let mask: Vec<u8> = dropped.iter().map(|&d| u8::from(d)).collect();
    let mask = Tensor::new(mask, y.device())?;
    match labels {
        Labels::None => Ok(y.clone()),
        Labels::Classes(null) => {
            Ok(mask.where_cond(&Tensor::full(null as u32, y.shape(), y.device())?.to_dtype(y.dtype())?, y)?)
        }
        Labels::Vector(_) => {
            let mask = mask.reshape((dropped.len(), 1))?.broadcast_as(y.shape())?;
            Ok(mask.where_cond(&y.zeros_like()?, y)?)
        }
    }
}
