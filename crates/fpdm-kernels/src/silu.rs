//! The sigmoid linear unit.

use crate::check::Check;
use crate::cpu::map::Silu;
use crate::dispatch::{Route, route, widened};
use crate::elementwise::elementwise;
use candle_core::{Result, Tensor};

/// `x / (1 + e^-x)`.
///
/// Any shape with at least one dimension. Differentiable.
///
/// # Errors
/// If `x` is a scalar or its type has no kernels.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    Check::new("silu", "x", x)?.last("x", x)?;
    match route(x) {
        #[cfg(feature = "cuda")]
        Route::Cuda => crate::cuda::silu(x),
        Route::Composed => composed(x),
        Route::Widened => widened([x], |[x]| silu(&x)),
        Route::Cpu => elementwise::<Silu>("silu", x),
    }
}

/// [`silu`] in candle's operations.
///
/// # Errors
/// If candle has no such operation for the type.
pub fn composed(x: &Tensor) -> Result<Tensor> {
    x.silu()
}
