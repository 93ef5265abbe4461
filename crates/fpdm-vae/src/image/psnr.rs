//! How much of a picture is left.

use candle_core::{DType, Tensor};
use fpdm_core::{Error, Result};

/// The peak signal-to-noise ratio in dB of tensors in [-1, 1]: `10 log10(4 / mean((a - b)²))`, infinite for equal ones.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ or are empty.
pub fn psnr(a: &Tensor, b: &Tensor) -> Result<f64> {
    if a.shape() != b.shape() || a.elem_count() == 0 {
        return Err(Error::shape("psnr: two tensors alike, not empty", a.shape(), b.shape()));
    }
    let difference = (a.to_dtype(DType::F32)? - b.to_dtype(DType::F32)?)?;
    let mean = f64::from(difference.sqr()?.mean_all()?.to_scalar::<f32>()?);
    Ok(10. * (4. / mean).log10())
}
