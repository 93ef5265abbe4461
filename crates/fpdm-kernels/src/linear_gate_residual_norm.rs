//! The end of one branch and the norm that begins the next.

use crate::check::Check;
use crate::dispatch::{Route, route};
use crate::layer_norm_modulate::{self, layer_norm_modulate};
use crate::linear::check_arguments;
use crate::linear_gate_residual::{self, linear_gate_residual};
use candle_core::{Result, Tensor};

/// `sum = residual + gate (x wᵀ + b)` and `norm(sum) (1 + scale) + shift`, both.
///
/// `x` (B, T, I), `w` (O, I), `b` (O), `residual` (B, T, O), `gate`, `shift` and `scale` (B, O) → twice (B, T, O). What
/// [`linear_gate_residual`] and [`layer_norm_modulate`] give one after the other; where a device
/// gains by it, and nothing is tracked, the sum is normalised before it leaves the registers. Differentiable in all
/// tensors.
///
/// # Errors
/// If shapes, types or devices do not fit.
pub fn linear_gate_residual_norm(
    (x, w, b): (&Tensor, &Tensor, &Tensor),
    (residual, gate): (&Tensor, &Tensor),
    (shift, scale): (&Tensor, &Tensor),
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    let op = "linear_gate_residual_norm";
    let check = Check::new(op, "x", x)?;
    let (batch, ..) = check.three("x", x)?;
    let shape = check_arguments(op, x, w, Some(b))?;
    check.shape("residual", residual, &shape)?;
    for (name, t) in [("gate", gate), ("shift", shift), ("scale", scale)] {
        check.shape(name, t, &[batch, shape[2]])?;
    }
    match route(x) {
        #[cfg(feature = "cuda")]
        Route::Cuda if crate::cuda::row_fits(shape[2]) => {
            crate::cuda::linear_gate_residual_norm((x, w, b), (residual, gate), (shift, scale), eps)
        }
        Route::Composed => composed((x, w, b), (residual, gate), (shift, scale), eps),
        _ => {
            let sum = linear_gate_residual(x, w, b, residual, gate)?;
            let out = layer_norm_modulate(&sum, shift, scale, eps)?;
            Ok((sum, out))
        }
    }
}

/// [`linear_gate_residual_norm`] in candle's operations.
///
/// # Errors
/// If candle cannot multiply or broadcast the arguments.
pub fn composed(
    (x, w, b): (&Tensor, &Tensor, &Tensor),
    (residual, gate): (&Tensor, &Tensor),
    (shift, scale): (&Tensor, &Tensor),
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    let sum = linear_gate_residual::composed(x, w, b, residual, gate)?;
    let out = layer_norm_modulate::composed(&sum, shift, scale, eps)?;
    Ok((sum, out))
}
