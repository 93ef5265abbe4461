//! The codec of models that work on pixels.

use candle_core::Tensor;
use fpdm_core::{LatentCodec, Moments, Result};

use crate::check::{pictures, same_type};

/// Pixels are latents: the identity, so that a pixel-space model needs no branch of its own.
///
/// # Shapes
///
/// `(B, 3, H, W)` both ways, any `H` and `W`. The standard deviation is 0.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use fpdm_vae::{LatentCodec, Pixels};
///
/// let x = Tensor::ones((1, 3, 5, 7), DType::F32, &Device::Cpu)?;
/// let z = Pixels.encode(&x)?.mean;
/// assert_eq!(Pixels.decode(&z)?.dims(), [1, 3, 5, 7]);
/// # fpdm_vae::Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pixels;

impl LatentCodec for Pixels {
    /// # Errors
    /// [`Error::Shape`](fpdm_core::Error::Shape) if `pixels` is not `(B, 3, H, W)` of floating point numbers.
    fn encode(&self, pixels: &Tensor) -> Result<Moments> {
        pictures("Pixels::encode: pixels", pixels, 3, 1)?;
        same_type("Pixels::encode: pixels", pixels)?;
        Ok(Moments { mean: pixels.clone(), std: pixels.zeros_like()?.detach() })
    }

    /// # Errors
    /// [`Error::Shape`](fpdm_core::Error::Shape) if `latents` is not `(B, 3, H, W)` of floating point numbers.
    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        pictures("Pixels::decode: latents", latents, 3, 1)?;
        same_type("Pixels::decode: latents", latents)?;
        Ok(latents.clone())
    }
}
