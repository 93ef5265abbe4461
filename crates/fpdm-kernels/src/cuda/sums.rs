//! Sums over rows: gradients of biases and gates; and along them: residuals.

use candle_core::{CudaDevice, DType, Result, Tensor};

use super::gpu::{Arg, Source, Variant, gpu, int};
use super::rows::{Out, Rows, device, vec};

const SUMS: Source = Source { name: "sums", text: include_str!("sums.cu") };

/// The sum of `g` over all but the last dimension.
pub(crate) fn rows(g: &Tensor) -> Result<Tensor> {
    let rows = Rows::dense(g)?;
    let device = device(g)?;
    let vec = vec(g.dtype(), &[&rows]);
    let out = groups(&device, (g.dtype(), vec), [rows.ptr, 0, 0, 0], (1, rows.rows, rows.width), 0)?;
    out.fresh(rows.width).untracked(g)
}

/// The gradients of `gate` (B, D), and of `y` (B, T, D) if it is asked for, of `gate y` from `g`.
pub(super) fn gate(g: &Tensor, gate: &Tensor, y: &Tensor, of_y: bool) -> Result<(Tensor, Option<Tensor>)> {
    let device = device(g)?;
    let (g_rows, gates, y_rows) = (Rows::dense(g)?, Rows::new(gate)?, Rows::dense(y)?);
    let vec = vec(g.dtype(), &[&g_rows, &gates, &y_rows]);
    let dy = if of_y { Some(Out::new(&device, g.dtype(), g.elem_count())?) } else { None };
    let pointers = [g_rows.ptr, y_rows.ptr, gates.ptr, dy.as_ref().map_or(0, |o| o.ptr)];
    let sizes = (gates.rows, g_rows.rows / gates.rows, g_rows.width);
    let out = groups(&device, (g.dtype(), vec), pointers, sizes, gates.stride)?;
    let dy = dy.map(|o| o.fresh(y.shape()).untracked(g)).transpose()?;
    Ok((out.fresh(gate.shape()).untracked(g)?, dy))
}

/// Both gradients of a gate, see [`gate`].
pub(crate) fn gate_gradients(g: &Tensor, gate_: &Tensor, y: &Tensor) -> Result<(Tensor, Tensor)> {
    let (dgate, dy) = gate(g, gate_, y, true)?;
    Ok((dgate, dy.unwrap_or_else(|| unreachable!("asked for"))))
}

/// Pointers: g, y, gate, dy, 0 where there is none. Sizes: groups, rows of each, width.
fn groups(
    device: &CudaDevice,
    (dtype, vec): (DType, usize),
    pointers: [u64; 4],
    (groups, rows, width): (usize, usize, usize),
    stride: usize,
) -> Result<Out> {
    let gpu = gpu(device)?;
    let packs = width / vec;
    let columns = packs.div_ceil(32);
    // About a thousand blocks keep a large GPU busy; shorter chunks than 32 rows are all overhead.
    let chunks = (1024 / (columns * groups)).clamp(1, rows.div_ceil(32));
    let chunk = rows.div_ceil(chunks);
    let chunks = rows.div_ceil(chunk);
    let variant = Variant { dtype, vec, steps: 0, head: 0 };
    let partial = Out::new(device, DType::F32, groups * chunks * width)?;
    let mut args = pointers.map(Arg::Ptr).to_vec();
    args.extend([Arg::Ptr(partial.ptr), int(packs)?, int(rows)?, int(chunk)?, int(stride)?]);
    gpu.launch((&SUMS, "group_sums", variant), ((columns, chunks, groups), (32, 8, 1)), 0, &args)?;
    finish(device, (dtype, vec), partial.ptr, (groups, chunks, width))
}

/// Adds the chunks of partial sums (groups, chunks, width) up and rounds.
pub(super) fn finish(
    device: &CudaDevice,
    (dtype, vec): (DType, usize),
    partial: u64,
    (groups, chunks, width): (usize, usize, usize),
) -> Result<Out> {
    let out = Out::new(device, dtype, groups * width)?;
    let args = [Arg::Ptr(partial), Arg::Ptr(out.ptr), int(width)?, int(chunks)?, int(groups)?];
    let grid = ((groups * width).div_ceil(256), 1, 1);
    let variant = Variant { dtype, vec, steps: 0, head: 0 };
    gpu(device)?.launch((&SUMS, "finish_sums", variant), (grid, (256, 1, 1)), 0, &args)?;
    Ok(out)
}

/// `‖f − z‖²` of every row, then `‖f‖²` of every row, (2B) in f32, of (B, N) each.
pub(crate) fn residual_squares(z: &Tensor, f: &Tensor) -> Result<Tensor> {
    let device = device(z)?;
    let (z_rows, f_rows) = (Rows::dense(z)?, Rows::dense(f)?);
    let (batch, width) = (z_rows.rows, z_rows.width);
    let vec = vec(z.dtype(), &[&z_rows, &f_rows]);
    let packs = width / vec;
    // As in `groups`.
    let chunks = (1024 / batch).clamp(1, packs.div_ceil(1024).max(1));
    let partial = Out::new(&device, DType::F32, chunks * 2 * batch)?;
    let args = [Arg::Ptr(z_rows.ptr), Arg::Ptr(f_rows.ptr), Arg::Ptr(partial.ptr), int(packs)?];
    let variant = Variant { dtype: z.dtype(), vec, steps: 0, head: 0 };
    let grid = ((chunks, batch, 1), (256, 1, 1));
    gpu(&device)?.launch((&SUMS, "residual_squares", variant), grid, 0, &args)?;
    let out = finish(&device, (DType::F32, 1), partial.ptr, (1, chunks, 2 * batch))?;
    out.fresh(2 * batch).untracked(z)
}
