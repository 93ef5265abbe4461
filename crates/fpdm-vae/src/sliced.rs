//! A batch, a few pictures at a time.

use candle_core::Tensor;
use fpdm_core::{Error, LatentCodec, Moments, Result};

/// A codec that sees at most so many pictures at a time: memory no longer grows with the batch, results are the same.
///
/// # Shapes
///
/// Those of the codec within.
pub struct Sliced {
    codec: Box<dyn LatentCodec>,
    size: usize,
}

impl Sliced {
    /// At most `size` pictures at a time.
    ///
    /// # Errors
    /// [`Error::Config`] if `size` is 0.
    pub fn new(codec: Box<dyn LatentCodec>, size: usize) -> Result<Self> {
        if size == 0 {
            return Err(Error::config("size", "0 pictures at a time; give at least 1"));
        }
        Ok(Self { codec, size })
    }

    fn parts<'a>(&'a self, t: &'a Tensor) -> Result<impl Iterator<Item = Result<Tensor>> + 'a> {
        let batch = t.dims().first().copied().unwrap_or(0);
        if batch == 0 {
            return Err(Error::shape("Sliced: a batch", "(B, C, H, W) with B > 0", t.dims()));
        }
        Ok((0..batch).step_by(self.size).map(move |at| Ok(t.narrow(0, at, self.size.min(batch - at))?)))
    }
}

impl LatentCodec for Sliced {
    fn encode(&self, pixels: &Tensor) -> Result<Moments> {
        let parts = self.parts(pixels)?.map(|part| self.codec.encode(&part?)).collect::<Result<Vec<_>>>()?;
        let cat = |part: fn(&Moments) -> &Tensor| Tensor::cat(&parts.iter().map(part).collect::<Vec<_>>(), 0);
        Ok(Moments { mean: cat(|m| &m.mean)?, std: cat(|m| &m.std)? })
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let parts = self.parts(latents)?.map(|part| self.codec.decode(&part?)).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&parts, 0)?)
    }
}
