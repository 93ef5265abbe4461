//! Layer norm whose affine part comes from the conditioning.

use crate::check::Check;
use crate::cpu::matrix::{Held, by_rows};
use crate::cpu::norm;
use crate::cpu::simd::Real;
use crate::dispatch::{Route, by_dtype, route, widened};
use crate::record::{Fresh, record3};
use candle_core::{D, DType, Result, Tensor};

/// `norm(x) (1 + scale) + shift`: layer norm without weights of its own, modulated for each sample.
///
/// `x` (B, T, D), `shift` and `scale` (B, D) → (B, T, D). `shift` and `scale` may be slices of one wide matrix.
/// Differentiable in all tensors.
///
/// # Errors
/// If shapes, types or devices do not fit.
pub fn layer_norm_modulate(x: &Tensor, shift: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor> {
    let check = Check::new("layer_norm_modulate", "x", x)?;
    let (batch, _, width) = check.three("x", x)?;
    check.shape("shift", shift, &[batch, width])?;
    check.shape("scale", scale, &[batch, width])?;
    match route(x) {
        #[cfg(feature = "cuda")]
        Route::Cuda if crate::cuda::row_fits(width) => crate::cuda::layer_norm_modulate(x, shift, scale, eps),
        #[cfg(feature = "cuda")]
        Route::Cuda => composed(x, shift, scale, eps),
        Route::Composed => composed(x, shift, scale, eps),
        Route::Widened => widened([x, shift, scale], |[x, shift, scale]| layer_norm_modulate(&x, &shift, &scale, eps)),
        Route::Cpu => {
            let out = by_dtype!(x, forward(x, shift, scale, eps))?;
            record3("layer_norm_modulate", [x, shift, scale], out, move |[x, shift, scale], _, g| {
                let (dx, both) = gradients(x, scale, g, eps)?;
                let width = scale.dim(1)?;
                let (dshift, dscale) = (both.narrow(1, 0, width)?, both.narrow(1, width, width)?);
                let wanted = |arg: &Tensor, gradient| arg.track_op().then_some(gradient);
                Ok([wanted(x, dx), wanted(shift, dshift), wanted(scale, dscale)])
            })
        }
    }
}

/// [`layer_norm_modulate`] in candle's operations. Half precision is normalised in `f32`.
///
/// # Errors
/// If candle cannot broadcast the arguments.
pub fn composed(x: &Tensor, shift: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let x = x.to_dtype(wide)?;
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    let unit = centred.broadcast_div(&deviation)?.to_dtype(dtype)?;
    unit.broadcast_mul(&(scale.unsqueeze(1)? + 1.)?)?.broadcast_add(&shift.unsqueeze(1)?)
}

/// The gradients of `x`, and of shift and scale side by side, on the CPU.
pub(crate) fn gradients(x: &Tensor, scale: &Tensor, g: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    let (dx, both) = by_dtype!(x, backward(x, scale, g, eps))?;
    Ok((dx.untracked(x)?, both.untracked(x)?))
}

fn forward<T: Real>(x: &Tensor, shift: &Tensor, scale: &Tensor, eps: f64) -> Result<Fresh> {
    let shape = x.dims();
    let (x, shift, scale) = (by_rows(x)?, by_rows(shift)?, by_rows(scale)?);
    let (x, shift, scale) = (Held::new(&x), Held::new(&shift), Held::new(&scale));
    Ok(Fresh::cpu(norm::forward::<T>(x.matrix()?, shift.matrix()?, scale.matrix()?, eps), shape))
}

fn backward<T: Real>(x: &Tensor, scale: &Tensor, g: &Tensor, eps: f64) -> Result<(Fresh, Fresh)> {
    let (shape, (batch, width)) = (x.dims(), scale.dims2()?);
    let (x, scale, g) = (by_rows(x)?, by_rows(scale)?, by_rows(g)?);
    let (x, scale, g) = (Held::new(&x), Held::new(&scale), Held::new(&g));
    let (dx, both) = norm::backward::<T>(x.matrix()?, scale.matrix()?, g.matrix()?, eps);
    Ok((Fresh::cpu(dx, shape), Fresh::cpu(both, (batch, 2 * width))))
}
