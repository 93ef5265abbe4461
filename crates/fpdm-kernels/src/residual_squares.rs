//! How far points are from their images.

use crate::check::Check;
use candle_core::{DType, Result, Tensor};

/// `‖f − z‖²` of every row, then `‖f‖²` of every row, `(2B)`.
///
/// `z` and `f` (B, N) → (2B), in `f64` for `f64` and in `f32` for all else, in which it is also computed. No history.
///
/// # Errors
/// If shapes, types or devices do not fit.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// let z = Tensor::new(&[[3f32, 4.], [1., 1.]], &Device::Cpu)?;
/// let f = Tensor::new(&[[0f32, 8.], [1., 1.]], &Device::Cpu)?;
/// assert_eq!(fpdm_kernels::residual_squares(&z, &f)?.to_vec1::<f32>()?, [25., 0., 64., 2.]);
/// # candle_core::Result::Ok(())
/// ```
pub fn residual_squares(z: &Tensor, f: &Tensor) -> Result<Tensor> {
    let check = Check::new("residual_squares", "z", z)?;
    let (rows, _) = check.two("z", z)?;
    check.shape("f", f, z.dims())?;
    let (z, f) = (z.detach(), f.detach());
    #[cfg(feature = "cuda")]
    if let crate::dispatch::Route::Cuda = crate::dispatch::route(&z)
        && rows < 1 << 16
    {
        return crate::cuda::residual_squares(&z, &f);
    }
    let _ = rows;
    composed(&z, &f)
}

/// [`residual_squares`] in candle's operations.
///
/// # Errors
/// If candle has no such operations for the type.
pub fn composed(z: &Tensor, f: &Tensor) -> Result<Tensor> {
    let wide = |t: &Tensor| if t.dtype() == DType::F64 { Ok(t.clone()) } else { t.to_dtype(DType::F32) };
    let (z, f) = (wide(z)?, wide(f)?);
    Tensor::cat(&[(&f - z)?.sqr()?.sum(1)?, f.sqr()?.sum(1)?], 0)
}
