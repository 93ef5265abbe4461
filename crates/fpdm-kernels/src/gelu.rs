//! The Gaussian error linear unit.

use crate::check::Check;
use crate::cpu::map::Gelu;
use crate::cpu::math::{GELU_CUBIC, GELU_SCALE};
use crate::dispatch::{Route, route, widened};
use crate::elementwise::{elementwise, run};
use candle_core::{DType, Result, Tensor};

/// `x (1 + tanh(sqrt(2/π) (x + 0.044715 x³))) / 2`, the tanh approximation.
///
/// Any shape with at least one dimension. Differentiable, with constants to full precision (those of `Tensor::gelu`
/// have six digits in the backward pass).
///
/// # Errors
/// If `x` is a scalar or its type has no kernels.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    Check::new("gelu", "x", x)?.last("x", x)?;
    match route(x) {
        #[cfg(feature = "cuda")]
        Route::Cuda => crate::cuda::gelu(x),
        Route::Composed => composed(x),
        Route::Widened => widened([x], |[x]| gelu(&x)),
        Route::Cpu => elementwise::<Gelu>("gelu", x),
    }
}

/// `g` times the slope at `x`, on the CPU.
pub(crate) fn gradient(x: &Tensor, g: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F64 => run::<f64, Gelu>(x, Some(g)),
        _ => run::<f32, Gelu>(x, Some(g)),
    }?
    .untracked(g)
}

/// [`gelu`] in candle's operations.
///
/// # Errors
/// If candle has no such operations for the type.
pub fn composed(x: &Tensor) -> Result<Tensor> {
    let inner = (x * ((x.sqr()? * (GELU_SCALE * GELU_CUBIC))? + GELU_SCALE)?)?;
    (x * 0.5)? * (inner.tanh()? + 1.)?
}
