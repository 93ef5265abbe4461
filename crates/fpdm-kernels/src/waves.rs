//! Times as vectors.

use candle_core::{DType, Result, Tensor, bail};

use crate::dispatch::route;

/// Cosines, then sines, of every `t` (B) times every frequency (F), (B, 2 F) in `dtype`; computed in the type of `t`.
///
/// # Errors
/// If shapes or types do not fit.
pub fn waves(t: &Tensor, frequencies: &Tensor, dtype: DType) -> Result<Tensor> {
    if t.rank() != 1 || frequencies.rank() != 1 || t.dtype() != frequencies.dtype() {
        let got = (t.dims(), frequencies.dims(), t.dtype(), frequencies.dtype());
        bail!("waves: expected `t` (B) and `frequencies` (F) of one type, got {got:?}")
    }
    match route(t) {
        #[cfg(feature = "cuda")]
        crate::dispatch::Route::Cuda if crate::cuda::waves_fit(t, frequencies, dtype) => {
            crate::cuda::waves(t, frequencies, dtype)
        }
        _ => composed(t, frequencies, dtype),
    }
}

/// [`waves`] in candle's operations, differentiable in both.
///
/// # Errors
/// If shapes or types do not fit.
pub fn composed(t: &Tensor, frequencies: &Tensor, dtype: DType) -> Result<Tensor> {
    let angles = t.unsqueeze(1)?.broadcast_mul(&frequencies.unsqueeze(0)?)?;
    Tensor::cat(&[angles.cos()?, angles.sin()?], 1)?.to_dtype(dtype)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn cosines_come_first() -> Result<()> {
        let t = Tensor::new(&[0f64, 2.], &Device::Cpu)?;
        let frequencies = Tensor::new(&[1f64, 0.5, 3.], &Device::Cpu)?;
        let found = waves(&t, &frequencies, DType::F64)?.to_vec2::<f64>()?;
        assert_eq!(found[0], [1., 1., 1., 0., 0., 0.]);
        for (i, angle) in [2f64, 1., 6.].into_iter().enumerate() {
            assert_eq!((found[1][i], found[1][i + 3]), (angle.cos(), angle.sin()));
        }
        Ok(())
    }

    #[test]
    fn one_type_and_one_dimension() -> Result<()> {
        let [wide, narrow] = [DType::F64, DType::F32].map(|d| Tensor::zeros(3, d, &Device::Cpu));
        let (wide, narrow) = (wide?, narrow?);
        assert!(waves(&wide, &narrow, DType::F32).is_err());
        assert!(waves(&wide.reshape((3, 1))?, &wide, DType::F64).is_err());
        Ok(())
    }
}
