//! Latents of unit variance.

use candle_core::Tensor;
use fpdm_core::{Moments, Normalisation, Result};

use super::{Batch, DataSource};

/// Measures `samples` samples of a source from its first on: one deviation for all channels, with the mean left as
/// it is, or mean and deviation of each channel.
///
/// # Errors
/// The source's; [`Error::Config`](fpdm_core::Error::Config) for latents that are all alike or no numbers, or no samples.
pub fn measure_latents(source: &dyn DataSource, samples: usize, per_channel: bool) -> Result<Normalisation> {
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
        Normalisation { mean, std }
    } else {
        let count = count * sums.len() as f64;
        let mean = sums.iter().sum::<f64>() / count;
        Normalisation { mean: vec![0.], std: vec![(squares.iter().sum::<f64>() / count - mean * mean).sqrt()] }
    };
    found.check()?;
    Ok(found)
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
