//! What group normalisation is made of: the statistics of groups of channels, and a factor and a summand for each channel.

use crate::check::Check;
use candle_core::{D, DType, Result, Tensor, bail};

/// The type in which statistics are taken: at least `f32`.
fn wide(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

/// Mean and variance of each group of neighbouring channels of each sample.
///
/// `x` (B, C, H, W) → two of (B, G, 1), in `f32` for narrower types. Differentiable; the variance is that of the
/// population.
///
/// # Errors
/// If `x` has not four dimensions or `groups` does not divide its channels.
pub fn group_moments(x: &Tensor, groups: usize) -> Result<(Tensor, Tensor)> {
    let &[_, c, _, _] = x.dims() else {
        bail!("group_moments: `x` must have four dimensions (B, C, H, W), got {:?}", x.dims())
    };
    if groups == 0 || c % groups != 0 || x.elem_count() == 0 {
        bail!("group_moments: {groups} groups do not divide the {c} channels of `x` {:?}", x.dims())
    }
    #[cfg(feature = "cuda")]
    if let crate::dispatch::Route::Cuda = crate::dispatch::route(x)
        && !x.track_op()
        && crate::cuda::pixels_fit(x.dims()[0], c)
        && i32::try_from(x.elem_count() / x.dims()[0] / groups).is_ok()
    {
        return crate::cuda::moments(x, groups);
    }
    composed_moments(x, groups)
}

/// [`group_moments`] in candle's operations.
///
/// # Errors
/// If candle cannot reshape `x`.
pub fn composed_moments(x: &Tensor, groups: usize) -> Result<(Tensor, Tensor)> {
    let (b, c, h, w) = x.dims4()?;
    let grouped = x.to_dtype(wide(x.dtype()))?.reshape((b, groups, (c / groups) * h * w))?;
    let mean = grouped.mean_keepdim(D::Minus1)?;
    let variance = grouped.broadcast_sub(&mean)?.sqr()?.mean_keepdim(D::Minus1)?;
    Ok((mean, variance))
}

/// `x factor + summand` with one of each for every channel of a sample, then [`silu`](crate::silu) if `silu`.
///
/// `x` (B, C, H, W), `factor` and `summand` (B, C) of [`group_moments`]' type → as `x`. Differentiable; computed in
/// the type of `factor`.
///
/// # Errors
/// If shapes, types or devices do not fit.
pub fn channel_affine(x: &Tensor, factor: &Tensor, summand: &Tensor, silu: bool) -> Result<Tensor> {
    let &[b, c, _, _] = x.dims() else {
        bail!("channel_affine: `x` must have four dimensions (B, C, H, W), got {:?}", x.dims())
    };
    let within = wide(x.dtype());
    if factor.dtype() != within {
        bail!("channel_affine: `factor` must be {within:?} for an `x` of {:?}, got {:?}", x.dtype(), factor.dtype())
    }
    let check = Check::new("channel_affine", "factor", factor)?;
    check.shape("factor", factor, &[b, c])?;
    check.shape("summand", summand, &[b, c])?;
    #[cfg(feature = "cuda")]
    if let crate::dispatch::Route::Cuda = crate::dispatch::route(x)
        && ![x, factor, summand].iter().any(|t| t.track_op())
        && factor.device().same_device(x.device())
        && crate::cuda::pixels_fit(b, c)
    {
        return crate::cuda::affine(x, factor, summand, silu);
    }
    composed_affine(x, factor, summand, silu)
}

/// [`channel_affine`] in candle's operations.
///
/// # Errors
/// If candle cannot broadcast the arguments.
pub fn composed_affine(x: &Tensor, factor: &Tensor, summand: &Tensor, silu: bool) -> Result<Tensor> {
    let (b, c, _, _) = x.dims4()?;
    let per_pixel = |t: &Tensor| t.reshape((b, c, 1, 1));
    let y = x.to_dtype(wide(x.dtype()))?.broadcast_mul(&per_pixel(factor)?)?.broadcast_add(&per_pixel(summand)?)?;
    let y = if silu { y.silu()? } else { y };
    y.to_dtype(x.dtype())
}
