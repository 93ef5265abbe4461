//! What a codec keeps of a picture.

use candle_core::Tensor;
use fpdm_core::{LatentCodec, Result};

/// `decode(mode(encode(pixels)))`, cut to [-1, 1].
///
/// # Errors
/// Those of the codec.
pub fn round_trip(codec: &dyn LatentCodec, pixels: &Tensor) -> Result<Tensor> {
    Ok(codec.decode(&codec.encode(pixels)?.mean)?.clamp(-1., 1.)?)
}
