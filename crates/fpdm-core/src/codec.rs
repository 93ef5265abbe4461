//! What a latent is.

use candle_core::Tensor;

use crate::{Error, Result};

/// The distribution of a latent, as a dataset stores it: mean and standard deviation, already normalised.
///
/// # Shapes
///
/// Both `(B, C, H, W)`. A codec that is certain has a standard deviation of 0.
#[derive(Clone, Debug)]
pub struct Moments {
    /// The mean.
    pub mean: Tensor,
    /// The standard deviation.
    pub std: Tensor,
}

impl Moments {
    /// The latent `mean + std·eps` for noise `eps` like `mean`.
    ///
    /// # Reference
    ///
    /// Kingma and Welling 2013, arXiv 1312.6114, section 2.4.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use fpdm_core::Moments;
    ///
    /// let of = |v: f64| Tensor::new(&[v], &Device::Cpu);
    /// let moments = Moments { mean: of(1.)?, std: of(2.)? };
    /// assert_eq!(moments.at(&of(0.5)?)?.to_vec1::<f64>()?, [2.]);
    /// # fpdm_core::Result::<()>::Ok(())
    /// ```
    pub fn at(&self, eps: &Tensor) -> Result<Tensor> {
        for (what, t) in [("Moments.std: like the mean", &self.std), ("Moments::at: `eps` like the mean", eps)] {
            if t.shape() != self.mean.shape() {
                return Err(Error::shape(what, self.mean.shape(), t.shape()));
            }
        }
        Ok((&self.mean + (&self.std * eps)?)?)
    }
}

/// Pixels to latents and back. Scale and shift of the latents live in here: outside, latents have about unit variance.
///
/// # Shapes
///
/// Pixels `(B, 3, F·H, F·W)` in [-1, 1], latents `(B, C, H, W)`, with a codec's own `F` and `C`.
///
/// ```
/// use candle_core::Tensor;
/// use fpdm_core::{LatentCodec, Moments, Result};
///
/// /// Pixels are latents.
/// struct Pixels;
/// impl LatentCodec for Pixels {
///     fn encode(&self, pixels: &Tensor) -> Result<Moments> {
///         Ok(Moments { mean: pixels.clone(), std: pixels.zeros_like()? })
///     }
///     fn decode(&self, latents: &Tensor) -> Result<Tensor> {
///         Ok(latents.clamp(-1., 1.)?)
///     }
/// }
/// ```
pub trait LatentCodec: Send + Sync {
    /// The distribution of the latents of `pixels`.
    fn encode(&self, pixels: &Tensor) -> Result<Moments>;

    /// The pixels of `latents`.
    fn decode(&self, latents: &Tensor) -> Result<Tensor>;
}

impl<C: LatentCodec + ?Sized> LatentCodec for Box<C> {
    fn encode(&self, pixels: &Tensor) -> Result<Moments> {
        (**self).encode(pixels)
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        (**self).decode(latents)
    }
}
