//! A product to which something of full size is added before GELU.

use crate::check::Check;
use crate::dispatch::{Route, route, widened};
use crate::gelu::{self, gelu};
use crate::linear::{self, check_arguments, input_gradient, project, weight_gradient};
use crate::record::{record3, wanted};
use candle_core::{Result, Tensor};

/// `gelu(x wᵀ + r)` with the tanh approximation of [`gelu`].
///
/// `x` (.., I), `w` (O, I), `r` (.., O) → (.., O). A layer on concatenated inputs is a sum of layers; where one input
/// stays the same over many calls, its share belongs into `r`. Differentiable in all arguments; if none of them is
/// tracked, the pre-activation is never stored.
///
/// # Errors
/// If shapes, types or devices do not fit.
pub fn linear_add_gelu(x: &Tensor, w: &Tensor, r: &Tensor) -> Result<Tensor> {
    let shape = check_arguments("linear_add_gelu", x, w, None)?;
    Check::new("linear_add_gelu", "x", x)?.shape("r", r, &shape)?;
    let tracked = x.track_op() || w.track_op() || r.track_op();
    match route(x) {
        #[cfg(feature = "cuda")]
        Route::Cuda => crate::cuda::linear_add_gelu(x, w, r),
        Route::Composed => composed(x, w, r),
        Route::Widened => widened([x, w, r], |[x, w, r]| linear_add_gelu(&x, &w, &r)),
        Route::Cpu if !tracked => project::<true>(x, w, None, Some(r))?.untracked(x),
        Route::Cpu => {
            let y = project::<false>(x, w, None, Some(r))?;
            gelu(&record3("linear_add", [x, w, r], y, |[x, w, r], _, g| {
                Ok([
                    wanted(x, || input_gradient(g, w))?,
                    wanted(w, || weight_gradient(g, x))?,
                    wanted(r, || Ok(g.clone()))?,
                ])
            })?)
        }
    }
}

/// [`linear_add_gelu`] in candle's operations.
///
/// # Errors
/// If candle cannot multiply or add the arguments.
pub fn composed(x: &Tensor, w: &Tensor, r: &Tensor) -> Result<Tensor> {
    gelu::composed(&(linear::composed(x, w, None)? + r)?)
}
