//! A gated branch added to what it started from.

use crate::check::Check;
use crate::cpu::gate::gated;
use crate::cpu::matrix::{Held, by_rows};
use crate::cpu::simd::Real;
use crate::cpu::sums::by_group;
use crate::dispatch::{Route, by_dtype, route, widened};
use crate::record::{Fresh, record3, wanted};
use candle_core::{Result, Tensor};

/// `x + gate y`, with one gate for all tokens of a sample.
///
/// `x` (B, T, D), `gate` (B, D), `y` (B, T, D) → (B, T, D). Differentiable in all arguments.
///
/// # Errors
/// If shapes, types or devices do not fit.
pub fn gate_residual(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    let check = Check::new("gate_residual", "x", x)?;
    let (batch, _, width) = check.three("x", x)?;
    check.shape("gate", gate, &[batch, width])?;
    check.shape("y", y, x.dims())?;
    match route(x) {
        #[cfg(feature = "cuda")]
        Route::Cuda => crate::cuda::gate_residual(x, gate, y),
        Route::Composed => composed(x, gate, y),
        Route::Widened => widened([x, gate, y], |[x, gate, y]| gate_residual(&x, &gate, &y)),
        Route::Cpu => {
            let out = by_dtype!(x, forward(Some(x), gate, y))?;
            record3("gate_residual", [x, gate, y], out, |[x, gate, y], _, g| {
                Ok([
                    wanted(x, || Ok(g.clone()))?,
                    wanted(gate, || by_dtype!(g, gate_gradient(g, y))?.untracked(g))?,
                    wanted(y, || by_dtype!(g, forward(None, gate, g))?.untracked(g))?,
                ])
            })
        }
    }
}

/// [`gate_residual`] in candle's operations.
///
/// # Errors
/// If candle cannot broadcast the arguments.
pub fn composed(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    x + y.broadcast_mul(&gate.unsqueeze(1)?)?
}

/// The gradients of `gate` and `y`, on the CPU.
pub(crate) fn gradients(g: &Tensor, gate: &Tensor, y: &Tensor) -> Result<(Tensor, Tensor)> {
    let dgate = by_dtype!(g, gate_gradient(g, y))?.untracked(g)?;
    Ok((dgate, by_dtype!(g, forward(None, gate, g))?.untracked(g)?))
}

fn forward<T: Real>(x: Option<&Tensor>, gate: &Tensor, y: &Tensor) -> Result<Fresh> {
    let shape = y.dims();
    let (x, gate, y) = (x.map(by_rows).transpose()?, by_rows(gate)?, by_rows(y)?);
    let (x, gate, y) = (x.as_ref().map(Held::new), Held::new(&gate), Held::new(&y));
    let x = x.as_ref().map(Held::matrix::<T>).transpose()?;
    Ok(Fresh::cpu(gated(x, gate.matrix()?, y.matrix()?), shape))
}

/// The sum of `g y` over the tokens of each sample.
fn gate_gradient<T: Real>(g: &Tensor, y: &Tensor) -> Result<Fresh> {
    let (batch, _, width) = y.dims3()?;
    let (g, y) = (by_rows(g)?, by_rows(y)?);
    let (g, y) = (Held::new(&g), Held::new(&y));
    Ok(Fresh::cpu(by_group(g.matrix::<T>()?, Some(y.matrix()?), batch), (batch, width)))
}
