//! Multi-head self-attention over all tokens.

use crate::check::Check;
use crate::cpu::attention::{self, Heads};
use crate::cpu::matrix::{Held, by_rows};
use crate::cpu::simd::Real;
use crate::dispatch::{Route, by_dtype, route, widened};
use crate::record::{Fresh, record1, wanted};
use crate::softmax;
use candle_core::{Result, Tensor, bail};

/// `softmax(q kᵀ / sqrt(d)) v` for each of `heads` heads of size `d`, any size.
///
/// `qkv` (B, T, 3 D) holds queries, keys and values one after the other, each as (`heads`, D / `heads`) → (B, T, D).
/// Differentiable; the backward pass computes the weights again instead of keeping them.
///
/// # Errors
/// If the width is not three times a multiple of `heads`, or the type has no kernels.
pub fn attention(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let (.., width) = Check::new("attention", "qkv", qkv)?.three("qkv", qkv)?;
    if heads == 0 || width == 0 || width % (3 * heads) != 0 {
        bail!("attention: the width of `qkv` must be 3 * D with D a multiple of `heads` = {heads}, got {width}")
    }
    match route(qkv) {
        #[cfg(feature = "cuda")]
        Route::Cuda if crate::cuda::attention_fits(width / 3 / heads) => crate::cuda::attention(qkv, heads),
        #[cfg(feature = "cuda")]
        Route::Cuda => composed(qkv, heads),
        Route::Composed => composed(qkv, heads),
        Route::Widened => widened([qkv], |[qkv]| attention(&qkv, heads)),
        Route::Cpu => {
            let out = by_dtype!(qkv, forward(qkv, heads))?;
            record1("attention", [qkv], out, move |[qkv], _, g| {
                Ok([wanted(qkv, || by_dtype!(qkv, backward(qkv, heads, g))?.untracked(g))?])
            })
        }
    }
}

/// [`attention`] in candle's operations.
///
/// # Errors
/// If `qkv` cannot be cut into three times `heads` parts.
pub fn composed(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, tokens, width) = qkv.dims3()?;
    let size = width / 3 / heads.max(1);
    let parts = qkv.reshape((batch, tokens, 3, heads, size))?.permute((2, 0, 3, 1, 4))?; // (3, B, H, T, d)
    let part = |i| parts.narrow(0, i, 1)?.squeeze(0)?.contiguous();
    let (q, k, v) = (part(0)?, part(1)?, part(2)?);
    let scores = (q * (1. / (size as f64).sqrt()))?.matmul(&k.transpose(2, 3)?)?;
    softmax::composed(&scores)?.matmul(&v)?.transpose(1, 2)?.reshape((batch, tokens, heads * size))
}

fn forward<T: Real>(qkv: &Tensor, heads: usize) -> Result<Fresh> {
    let (batch, tokens, width) = qkv.dims3()?;
    let qkv = by_rows(qkv)?;
    let qkv = Held::new(&qkv);
    let out = attention::forward(Heads { qkv: qkv.matrix::<T>()?, batch, heads });
    Ok(Fresh::cpu(out, (batch, tokens, width / 3)))
}

pub(crate) fn backward<T: Real>(qkv: &Tensor, heads: usize, g: &Tensor) -> Result<Fresh> {
    let (shape, batch) = (qkv.dims(), qkv.dim(0)?);
    let (qkv, g) = (by_rows(qkv)?, by_rows(g)?);
    let (qkv, g) = (Held::new(&qkv), Held::new(&g));
    let out = attention::backward(Heads { qkv: qkv.matrix::<T>()?, batch, heads }, g.matrix()?);
    Ok(Fresh::cpu(out, shape))
}
