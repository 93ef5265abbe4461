//! One flat f32 buffer for all parameters of a network: gradients go in, weights come out, in place.

use candle_core::{DType, Result, Tensor, bail};

use super::gpu::{Arg, Source, Variant, gpu};
use super::rows::{Rows, address, device};

const FLAT: Source = Source { name: "flat", text: include_str!("flat.cu"), own: false };

fn check(what: &str, flat: &Tensor, offset: usize, len: usize) -> Result<()> {
    if flat.dtype() != DType::F32 || flat.rank() != 1 || !flat.is_contiguous() || offset + len > flat.elem_count() {
        let (dims, dtype) = (flat.dims(), flat.dtype());
        bail!("{what}: {len} elements at {offset} do not fit a contiguous f32 buffer, got {dims:?} {dtype:?}")
    }
    Ok(())
}

fn launch(name: &'static str, dtype: DType, len: usize, args: &[Arg], like: &Tensor) -> Result<()> {
    let variant = Variant { dtype, vec: 0, steps: 0, head: 0 };
    let blocks = len.div_ceil(256 * 4).clamp(1, 2048);
    gpu(&device(like)?)?.launch((&FLAT, name, variant), ((blocks, 1, 1), (256, 1, 1)), 0, args)
}

/// Overwrites the elements of `flat` from `offset` on with `scale` times `x`, or adds that to them if `add`, **in
/// place**. `x` may have any shape, in f32, bf16 or f16.
///
/// # Errors
/// If `x` does not fit there, or a tensor is elsewhere.
pub fn add_into(flat: &Tensor, offset: usize, x: &Tensor, scale: f64, add: bool) -> Result<()> {
    let len = x.elem_count();
    check("add_into", flat, offset, len)?;
    let rows = Rows::dense(x)?;
    let to = address(flat)? + (offset * size_of::<f32>()) as u64;
    let args =
        [Arg::Ptr(to), Arg::Ptr(rows.ptr), Arg::Float(scale as f32), Arg::Int(i32::from(add)), Arg::Long(len as i64)];
    launch("add_into", x.dtype(), len, &args, flat)
}

/// Overwrites the contiguous tensor `x` with the elements of `flat` from `offset` on, rounded to its type, **in place**.
///
/// # Errors
/// If they are not there, or a tensor is elsewhere or not contiguous.
pub fn copy_from(x: &Tensor, flat: &Tensor, offset: usize) -> Result<()> {
    let len = x.elem_count();
    check("copy_from", flat, offset, len)?;
    if !x.is_contiguous() {
        bail!("copy_from: `x` must be contiguous, got strides {:?}", x.stride())
    }
    let from = address(flat)? + (offset * size_of::<f32>()) as u64;
    let args = [Arg::Ptr(from), Arg::Ptr(address(x)?), Arg::Long(len as i64)];
    launch("copy_from", x.dtype(), len, &args, flat)
}
