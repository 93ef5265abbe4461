//! The affine map at the end of a branch: gated and added to what the branch started from.

use crate::check::Check;
use crate::cpu::epilogue::Gated;
use crate::cpu::matrix::{Held, by_rows};
use crate::cpu::simd::Real;
use crate::dispatch::{Route, by_dtype, route, widened};
use crate::gate_residual::{self, gate_residual};
use crate::linear::{self, check_arguments, linear, product};
use crate::record::Fresh;
use candle_core::{Result, Tensor};

/// `residual + gate (x wᵀ + b)`, with one gate for all tokens of a sample.
///
/// `x` (B, T, I), `w` (O, I), `b` (O), `residual` (B, T, O), `gate` (B, O) → (B, T, O). Differentiable in all
/// arguments; if none of them is tracked, the product is never stored.
///
/// # Errors
/// If shapes, types or devices do not fit.
pub fn linear_gate_residual(x: &Tensor, w: &Tensor, b: &Tensor, residual: &Tensor, gate: &Tensor) -> Result<Tensor> {
    let op = "linear_gate_residual";
    let check = Check::new(op, "x", x)?;
    let (batch, ..) = check.three("x", x)?;
    let shape = check_arguments(op, x, w, Some(b))?;
    check.shape("residual", residual, &shape)?;
    check.shape("gate", gate, &[batch, shape[2]])?;
    let tracked = [x, w, b, residual, gate].iter().any(|t| t.track_op());
    match route(x) {
        #[cfg(feature = "cuda")]
        Route::Cuda => crate::cuda::linear_gate_residual(x, w, b, residual, gate),
        Route::Composed => composed(x, w, b, residual, gate),
        Route::Widened => widened([x, w, b, residual, gate], |[x, w, b, residual, gate]| {
            linear_gate_residual(&x, &w, &b, &residual, &gate)
        }),
        Route::Cpu if tracked => gate_residual(residual, gate, &linear(x, w, Some(b))?),
        Route::Cpu => by_dtype!(x, joined(x, w, b, residual, gate))?.untracked(x),
    }
}

fn joined<T: Real>(x: &Tensor, w: &Tensor, b: &Tensor, residual: &Tensor, gate: &Tensor) -> Result<Fresh> {
    let tokens = x.dim(1)?;
    let (b, residual, gate) = (by_rows(b)?, by_rows(residual)?, by_rows(gate)?);
    let (b, residual, gate) = (Held::new(&b), Held::new(&residual), Held::new(&gate));
    let (bias, residual, gate) = (b.matrix::<T>()?, residual.matrix()?, gate.matrix()?);
    product(x, w, Gated { bias, residual, gate, tokens })
}

/// [`linear_gate_residual`] in candle's operations.
///
/// # Errors
/// If candle cannot multiply or broadcast the arguments.
pub fn composed(x: &Tensor, w: &Tensor, b: &Tensor, residual: &Tensor, gate: &Tensor) -> Result<Tensor> {
    gate_residual::composed(residual, gate, &linear::composed(x, w, Some(b))?)
}
