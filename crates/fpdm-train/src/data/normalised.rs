//! Latents of unit variance.

use candle_core::{Device, Tensor};
use fpdm_core::{Error, Moments, Result};
use serde::{Deserialize, Serialize};

use super::{Batch, DataSource};

/// What is subtracted from latents, and what they are divided by then, so that a network sees about unit variance.
///
/// A codec's own scaling belongs to its training data; other pictures have other latents.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fpdm_train::Normalisation;
///
/// let scale = Normalisation { mean: vec![1.], std: vec![2.] };
/// let latents = Tensor::full(5f32, (1, 1, 2, 2), &Device::Cpu)?;
/// let seen = scale.apply(&latents)?;
/// assert_eq!(seen.flatten_all()?.to_vec1::<f32>()?, [2.; 4]);
/// assert_eq!(scale.undo(&seen)?.flatten_all()?.to_vec1::<f32>()?, [5.; 4]);
/// # fpdm_core::Result::<()>::Ok(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalisation {
    /// One mean for all channels or one for each.
    pub mean: Vec<f64>,
    /// One deviation for all channels or one for each, above 0.
    pub std: Vec<f64>,
}

impl Normalisation {
    /// Measures `samples` samples of a source from its first on: one deviation for all channels, with the mean left as
    /// it is, or mean and deviation of each channel.
    ///
    /// # Errors
    /// The source's; [`Error::Config`] for latents that are all alike or no numbers, or no samples.
    pub fn measure(source: &dyn DataSource, samples: usize, per_channel: bool) -> Result<Self> {
        const BATCH: usize = 64;
        let (mut sums, mut squares, mut count) = (Vec::new(), Vec::new(), 0f64);
        for index in 0..samples.div_ceil(BATCH) {
            let Moments { mean, std } = source.batch(index as u64, BATCH)?.moments;
            let used = BATCH.min(samples - index * BATCH);
            let (mean, std) = (mean.narrow(0, 0, used)?, std.narrow(0, 0, used)?);
            let (_, channels, height, width) = mean.dims4()?;
            // E[x²] of a latent with its own deviation is mean² + std². Sums of one batch are short enough for f32.
            let of = |t: Tensor| -> Result<Vec<f32>> { Ok(t.sum(3)?.sum(2)?.sum(0)?.to_vec1()?) };
            sums.resize(channels, 0f64);
            squares.resize(channels, 0f64);
            for (total, part) in sums.iter_mut().zip(of(mean.clone())?) {
                *total += f64::from(part);
            }
            for (total, part) in squares.iter_mut().zip(of((mean.sqr()? + std.sqr()?)?)?) {
                *total += f64::from(part);
            }
            count += (used * height * width) as f64;
        }
        let found = if per_channel {
            let mean: Vec<f64> = sums.iter().map(|sum| sum / count).collect();
            let std = squares.iter().zip(&mean).map(|(square, mean)| (square / count - mean * mean).sqrt()).collect();
            Self { mean, std }
        } else {
            let count = count * sums.len() as f64;
            let mean = sums.iter().sum::<f64>() / count;
            Self { mean: vec![0.], std: vec![(squares.iter().sum::<f64>() / count - mean * mean).sqrt()] }
        };
        found.check()?;
        Ok(found)
    }

    /// Refuses what nothing can be divided by.
    pub fn check(&self) -> Result<()> {
        let good = |v: &f64| *v > 0. && v.is_finite();
        if self.std.is_empty() || !self.std.iter().all(good) || !self.mean.iter().all(|v| v.is_finite()) {
            let why = format!("mean {:?} and deviation {:?}: deviations must be above 0", self.mean, self.std);
            return Err(Error::config("normalisation", why));
        }
        Ok(())
    }

    /// `(x − mean) / std` for latents `(B, C, H, W)`.
    pub fn apply(&self, latents: &Tensor) -> Result<Tensor> {
        if let ([mean], [std]) = (&self.mean[..], &self.std[..]) {
            return Ok(latents.affine(1. / std, -mean / std)?);
        }
        let std = self.column(&self.std, latents)?;
        Ok(latents.broadcast_sub(&self.column(&self.mean, latents)?)?.broadcast_div(&std)?)
    }

    /// `x·std + mean`: what a codec can decode.
    pub fn undo(&self, latents: &Tensor) -> Result<Tensor> {
        let (mean, std) = (self.column(&self.mean, latents)?, self.column(&self.std, latents)?);
        Ok(latents.broadcast_mul(&std)?.broadcast_add(&mean)?)
    }

    fn column(&self, values: &[f64], latents: &Tensor) -> Result<Tensor> {
        let channels = latents.dim(1)?;
        if values.len() != 1 && values.len() != channels {
            return Err(Error::shape("normalisation: one value or one a channel", channels, values.len()));
        }
        let column = Tensor::from_slice(values, (1, values.len(), 1, 1), &Device::Cpu)?;
        Ok(column.to_dtype(latents.dtype())?.to_device(latents.device())?)
    }
}

/// A source whose latents are normalised.
pub struct Normalised<S> {
    source: S,
    by: Normalisation,
}

impl<S: DataSource> Normalised<S> {
    /// `source`, normalised `by` something.
    ///
    /// # Errors
    /// [`Normalisation::check`]'s.
    pub fn new(source: S, by: Normalisation) -> Result<Self> {
        by.check()?;
        Ok(Self { source, by })
    }
}

impl<S: DataSource> DataSource for Normalised<S> {
    fn batch(&self, index: u64, size: usize) -> Result<Batch> {
        let Batch { moments, y, positions } = self.source.batch(index, size)?;
        let spread = Normalisation { mean: vec![0.], std: self.by.std.clone() };
        let moments = Moments { mean: self.by.apply(&moments.mean)?, std: spread.apply(&moments.std)? };
        Ok(Batch { moments, y, positions })
    }
}
