//! A vector added to every row.

use crate::check::Check;
use crate::cpu::gate::biased;
use crate::cpu::matrix::{Held, by_rows};
use crate::cpu::simd::Real;
use crate::dispatch::{Route, by_dtype, route, widened};
use crate::linear::bias_gradient;
use crate::record::{Fresh, record2, wanted};
use candle_core::{Result, Tensor};

/// `x + b`.
///
/// `x` (.., D), `b` (D) → (.., D). Differentiable in both; the gradient of `b` is one pass over that of `x`.
///
/// # Errors
/// If shapes, types or devices do not fit.
pub fn bias(x: &Tensor, b: &Tensor) -> Result<Tensor> {
    let check = Check::new("bias", "x", x)?;
    let width = check.last("x", x)?;
    check.shape("b", b, &[width])?;
    match route(x) {
        #[cfg(feature = "cuda")]
        Route::Cuda => crate::cuda::bias(x, b),
        Route::Composed => composed(x, b),
        Route::Widened => widened([x, b], |[x, b]| bias(&x, &b)),
        Route::Cpu => {
            let out = by_dtype!(x, forward(x, b))?;
            record2("bias", [x, b], out, |[x, b], _, g| {
                Ok([wanted(x, || Ok(g.clone()))?, wanted(b, || bias_gradient(g))?])
            })
        }
    }
}

/// [`bias`] in candle's operations.
///
/// # Errors
/// If candle cannot broadcast the arguments.
pub fn composed(x: &Tensor, b: &Tensor) -> Result<Tensor> {
    x.broadcast_add(b)
}

fn forward<T: Real>(x: &Tensor, b: &Tensor) -> Result<Fresh> {
    let shape = x.dims();
    let (x, b) = (by_rows(x)?, by_rows(b)?);
    let (x, b) = (Held::new(&x), Held::new(&b));
    Ok(Fresh::cpu(biased::<T>(x.matrix()?, b.matrix()?), shape))
}
