//! The affine map followed by GELU.

use crate::dispatch::{Route, route};
use crate::gelu::{self, gelu};
use crate::linear::{self, check_arguments, linear, project};
use candle_core::{Result, Tensor};

/// `gelu(x wᵀ + b)` with the tanh approximation of [`gelu`].
///
/// `x` (.., I), `w` (O, I), `b` (O) → (.., O). Differentiable in all arguments; if none of them is tracked, the
/// pre-activation is never stored.
///
/// # Errors
/// If shapes, types or devices do not fit.
pub fn linear_gelu(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    check_arguments("linear_gelu", x, w, b)?;
    let tracked = x.track_op() || w.track_op() || b.is_some_and(Tensor::track_op);
    match route(x) {
        #[cfg(feature = "cuda")]
        Route::Cuda => crate::cuda::linear_gelu(x, w, b),
        Route::Composed => composed(x, w, b),
        Route::Cpu if !tracked => project::<true>(x, w, b, None)?.untracked(x),
        Route::Cpu | Route::Widened => gelu(&linear(x, w, b)?),
    }
}

/// [`linear_gelu`] in candle's operations.
///
/// # Errors
/// If candle cannot multiply or broadcast the arguments.
pub fn composed(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    gelu::composed(&linear::composed(x, w, b)?)
}
