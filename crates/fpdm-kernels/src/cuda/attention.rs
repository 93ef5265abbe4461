//! Multi-head attention, forward and backward, without a matrix of scores in memory.

use candle_core::{DType, Result, Tensor};

use super::gpu::{Arg, Source, Variant, gpu, int};
use super::rows::{Out, Rows, device};
use crate::record::{Fresh, record1, wanted};

const ATTENTION: Source = Source {
    name: "attention",
    text: concat!(include_str!("instructions.cuh"), include_str!("attention.cu")),
    own: false,
};

/// Whether there are kernels for heads of this size.
pub(crate) fn fits(head: usize) -> bool {
    (32..=128).contains(&head) && head.is_multiple_of(8)
}

/// Warps of a block, rows of the result that a block makes, and its dynamic shared memory; the table in the source.
fn forward_shape(dtype: DType, head: usize, tokens: usize) -> (usize, usize, usize) {
    if dtype == DType::F32 {
        return (4, 32, (96 * (head + 4) + 32 * 36) * 4);
    }
    let warps = even(tokens, 8);
    (warps, 16 * warps, (16 * warps + 256) * row(head))
}

fn backward_shape(dtype: DType, head: usize, tokens: usize) -> (usize, usize, usize) {
    if dtype == DType::F32 {
        return (4, 32, (128 * (head + 4) + 64 * 36 + 64) * 4);
    }
    let warps = even(tokens, if head <= 80 { 6 } else { 4 });
    (warps, 16 * warps, (2 * 16 * warps + 256) * row(head) + 1024)
}

/// Bytes of a row in shared memory: an odd number of 16-byte units, so that neighbouring rows use other banks.
fn row(head: usize) -> usize {
    16 * ((head / 8) | 1)
}

/// The warps, at most `most`, that spread the strips of 16 tokens evenly over the fewest blocks.
fn even(tokens: usize, most: usize) -> usize {
    let strips = tokens.div_ceil(16);
    strips.div_ceil(strips.div_ceil(most))
}

/// `softmax(q kᵀ / sqrt(d)) v` of (B, T, 3 D), recorded. The size of a head must fit.
pub(crate) fn attention(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let (out, sums) = run(qkv, heads, qkv.track_op())?;
    match sums {
        None => out.untracked(qkv),
        Some(sums) => {
            let sums = sums.untracked(qkv)?;
            record1("attention", [qkv], out, move |[qkv], y, g| {
                Ok([wanted(qkv, || attention_gradient(qkv, heads, y, &sums, g))?])
            })
        }
    }
}

/// The same without history, and the logarithms of the sums of exponentials (B, heads, T) in f32.
pub(crate) fn attention_with_sums(qkv: &Tensor, heads: usize) -> Result<(Tensor, Tensor)> {
    let (out, sums) = run(qkv, heads, true)?;
    Ok((out.untracked(qkv)?, sums.unwrap_or_else(|| unreachable!("asked for")).untracked(qkv)?))
}

fn run(qkv: &Tensor, heads: usize, keep_sums: bool) -> Result<(Fresh, Option<Fresh>)> {
    let (batch, tokens, width) = qkv.dims3()?;
    let device = device(qkv)?;
    let gpu = gpu(&device)?;
    let variant = Variant { dtype: qkv.dtype(), vec: 0, steps: 0, head: width / 3 / heads };
    let rows = Rows::dense(qkv)?;
    let out = Out::new(&device, qkv.dtype(), batch * tokens * width / 3)?;
    let sums = if keep_sums { Some(Out::new(&device, DType::F32, batch * heads * tokens)?) } else { None };
    let (warps, step, shared) = forward_shape(variant.dtype, variant.head, tokens);
    let args = [
        Arg::Ptr(rows.ptr),
        Arg::Ptr(out.ptr),
        Arg::Ptr(sums.as_ref().map_or(0, |s| s.ptr)),
        int(batch)?,
        int(tokens)?,
        int(heads)?,
    ];
    let grid = (tokens.div_ceil(step), heads, batch);
    gpu.launch((&ATTENTION, "attention_forward", variant), (grid, (32 * warps as u32, 1, 1)), shared, &args)?;
    Ok((out.fresh((batch, tokens, width / 3)), sums.map(|s| s.fresh((batch, heads, tokens)))))
}

/// The gradient of `qkv` from the result `y`, the sums, and the result's gradient `g`.
pub(crate) fn attention_gradient(qkv: &Tensor, heads: usize, y: &Tensor, sums: &Tensor, g: &Tensor) -> Result<Tensor> {
    let (batch, tokens, width) = qkv.dims3()?;
    let device = device(qkv)?;
    let gpu = gpu(&device)?;
    let variant = Variant { dtype: qkv.dtype(), vec: 0, steps: 0, head: width / 3 / heads };
    let (qkv_rows, ys, gs, sums) = (Rows::dense(qkv)?, Rows::dense(y)?, Rows::dense(g)?, Rows::dense(sums)?);
    let counts = [int(batch)?, int(tokens)?, int(heads)?];
    let delta = Out::new(&device, DType::F32, batch * heads * tokens)?;
    let args = [[Arg::Ptr(ys.ptr), Arg::Ptr(gs.ptr), Arg::Ptr(delta.ptr)], counts].concat();
    let grid = ((batch * tokens * heads).div_ceil(256 / (variant.head / 8)), 1, 1);
    gpu.launch((&ATTENTION, "attention_backward_delta", variant), (grid, (256, 1, 1)), 1024, &args)?;

    let out = Out::new(&device, qkv.dtype(), qkv.elem_count())?;
    let (warps, step, shared) = backward_shape(variant.dtype, variant.head, tokens);
    let pointers = [qkv_rows.ptr, gs.ptr, sums.ptr, delta.ptr, out.ptr].map(Arg::Ptr);
    let args = [pointers.as_slice(), &counts].concat();
    let grid = (2 * tokens.div_ceil(step), heads, batch);
    gpu.launch((&ATTENTION, "attention_backward", variant), (grid, (32 * warps as u32, 1, 1)), shared, &args)?;
    out.fresh(qkv.shape()).untracked(g)
}
