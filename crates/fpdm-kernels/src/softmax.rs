//! Softmax over the last dimension.

use crate::check::Check;
use crate::cpu::matrix::{Held, by_rows};
use crate::cpu::simd::Real;
use crate::cpu::softmax as cpu;
use crate::dispatch::{Route, by_dtype, route, widened};
use crate::record::{Fresh, record1, wanted};
use candle_core::{D, DType, Result, Tensor};

/// The softmax of the last dimension.
///
/// `x` (.., D) → (.., D). Differentiable, unlike `candle_nn::ops::softmax_last_dim`.
///
/// # Errors
/// If `x` is a scalar or its type has no kernels.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    Check::new("softmax", "x", x)?.last("x", x)?;
    match route(x) {
        #[cfg(feature = "cuda")]
        Route::Cuda if crate::cuda::row_fits(x.dims()[x.rank() - 1]) => crate::cuda::softmax(x),
        #[cfg(feature = "cuda")]
        Route::Cuda => composed(x),
        Route::Composed => composed(x),
        Route::Widened => widened([x], |[x]| softmax(&x)),
        Route::Cpu => {
            let out = by_dtype!(x, forward(x))?;
            record1("softmax", [x], out, |[x], y, g| Ok([wanted(x, || by_dtype!(g, backward(y, g))?.untracked(g))?]))
        }
    }
}

/// [`softmax`] in candle's operations. Half precision is summed in `f32`.
///
/// # Errors
/// If `x` is a scalar.
pub fn composed(x: &Tensor) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(if dtype == DType::F64 { DType::F64 } else { DType::F32 })?;
    // The maximum cancels, and so does its gradient.
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?.to_dtype(dtype)
}

fn forward<T: Real>(x: &Tensor) -> Result<Fresh> {
    let shape = x.dims();
    let x = by_rows(x)?;
    let x = Held::new(&x);
    Ok(Fresh::cpu(cpu::forward(x.matrix::<T>()?), shape))
}

fn backward<T: Real>(y: &Tensor, g: &Tensor) -> Result<Fresh> {
    let shape = y.dims();
    let (y, g) = (by_rows(y)?, by_rows(g)?);
    let (y, g) = (Held::new(&y), Held::new(&g));
    Ok(Fresh::cpu(cpu::backward::<T>(y.matrix()?, g.matrix()?), shape))
}
