//! What the encoder knows about a latent.

use candle_core::Tensor;
use fpdm_core::rng::{self, Stream};
use fpdm_core::{Moments, Result};

/// A diagonal Gaussian over latents in the network's own scale: before the scaling factor.
///
/// # Shapes
///
/// Both `(B, C, H, W)`.
///
/// # Reference
///
/// Kingma and Welling 2013, arXiv 1312.6114; bounds of the log-variance as in Rombach et al. 2022, arXiv 2112.10752.
#[derive(Clone, Debug)]
pub struct Posterior {
    /// The mean.
    pub mean: Tensor,
    /// The logarithm of the variance, within [-30, 20].
    pub log_var: Tensor,
}

impl Posterior {
    /// From what the encoder says, `(B, 2C, H, W)`.
    pub(super) fn new(parameters: &Tensor) -> Result<Self> {
        let parts = parameters.chunk(2, 1)?;
        Ok(Self { mean: parts[0].contiguous()?, log_var: parts[1].clamp(-30., 20.)? })
    }

    /// The most likely latent: the mean.
    pub fn mode(&self) -> Tensor {
        self.mean.clone()
    }

    /// The standard deviation.
    ///
    /// # Errors
    /// Those of Candle.
    pub fn std(&self) -> Result<Tensor> {
        Ok((&self.log_var * 0.5)?.exp()?)
    }

    /// A sample: row `b` from the noise of `(seed, indices[b])`, the same on every device and in every batch.
    ///
    /// # Errors
    /// [`Error::Shape`](fpdm_core::Error::Shape) if there is not one index for each row.
    pub fn sample(&self, seed: u64, indices: &[u64]) -> Result<Tensor> {
        let (b, c, h, w) = self.mean.dims4()?;
        if indices.len() != b {
            return Err(fpdm_core::Error::shape("Posterior::sample: one index a row", b, indices.len()));
        }
        let (dtype, device) = (self.mean.dtype(), self.mean.device());
        let eps = rng::normal_batch(seed, Stream::Noise, indices, (c, h, w), dtype, device)?;
        Moments { mean: self.mean.clone(), std: self.std()? }.at(&eps)
    }
}
