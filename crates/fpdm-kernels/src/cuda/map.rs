//! Functions of single numbers, gates and biases.

use candle_core::{DType, Result, Tensor};

use super::gpu::{Arg, Gpu, Source, Variant, gpu, int};
use super::rows::{Out, Rows, device, vec};
use super::sums;
use crate::record::{record1, record2, record3, wanted};

const MAP: Source = Source { name: "map", text: include_str!("map.cu"), own: false };
const GATE: Source = Source { name: "gate", text: include_str!("gate.cu"), own: false };

/// Runs an elementwise kernel over `elements` at the pointers, the last of which is written.
fn each<const N: usize>(
    gpu: &Gpu,
    name: &'static str,
    dtype: DType,
    pointers: [u64; N],
    elements: usize,
) -> Result<()> {
    let wide = pointers.iter().all(|p| p.is_multiple_of(16)) && (elements * dtype.size_in_bytes()).is_multiple_of(16);
    let vec = if wide { 16 / dtype.size_in_bytes() } else { 1 };
    let packs = elements / vec;
    let mut args = [Arg::Long(packs as i64); 4];
    for (arg, p) in args.iter_mut().zip(pointers) {
        *arg = Arg::Ptr(p);
    }
    let variant = Variant { dtype, vec, steps: 0, head: 0 };
    // Enough blocks to fill any GPU; the loop in the kernel does the rest.
    let grid = (packs.div_ceil(256).clamp(1, 4096), 1, 1);
    gpu.launch((&MAP, name, variant), (grid, (256, 1, 1)), 0, &args[..N + 1])
}

/// `f(x)`, and `pull(x, g)` for its gradient, recorded.
fn function(x: &Tensor, op: &'static str, f: &'static str, pull: &'static str) -> Result<Tensor> {
    let device = device(x)?;
    let rows = Rows::dense(x)?;
    let out = Out::new(&device, x.dtype(), x.elem_count())?;
    each(&*gpu(&device)?, f, x.dtype(), [rows.ptr, out.ptr], x.elem_count())?;
    record1(op, [x], out.fresh(x.shape()), move |[x], _, g| Ok([wanted(x, || pulled(pull, x, g))?]))
}

fn pulled(pull: &'static str, x: &Tensor, g: &Tensor) -> Result<Tensor> {
    let device = device(x)?;
    let (rows, grad) = (Rows::dense(x)?, Rows::dense(g)?);
    let out = Out::new(&device, x.dtype(), x.elem_count())?;
    each(&*gpu(&device)?, pull, x.dtype(), [rows.ptr, grad.ptr, out.ptr], x.elem_count())?;
    out.fresh(x.shape()).untracked(x)
}

pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    function(x, "gelu", "gelu_forward", "gelu_backward")
}

pub(crate) fn silu(x: &Tensor) -> Result<Tensor> {
    function(x, "silu", "silu_forward", "silu_backward")
}

/// The gradient of GELU at `x`.
pub(super) fn gelu_gradient(x: &Tensor, g: &Tensor) -> Result<Tensor> {
    pulled("gelu_backward", x, g)
}

/// Adds `g` to `sum` of the same type, in place.
pub(crate) fn add(sum: &Tensor, g: &Tensor) -> Result<()> {
    let (to, from) = (Rows::dense(sum)?, Rows::dense(g)?);
    each(&*gpu(&device(sum)?)?, "add", sum.dtype(), [to.ptr, from.ptr, to.ptr], sum.elem_count())
}

pub(super) fn gelu_into(gpu: &Gpu, dtype: DType, x: u64, out: u64, elements: usize) -> Result<()> {
    each(gpu, "gelu_forward", dtype, [x, out], elements)
}

/// Adds a row to every row of a matrix, in place.
pub(super) fn add_row(gpu: &Gpu, dtype: DType, x: u64, bias: u64, (rows, width): (usize, usize)) -> Result<()> {
    let wide = (width * dtype.size_in_bytes()).is_multiple_of(16) && (x | bias).is_multiple_of(16);
    let vec = if wide { 16 / dtype.size_in_bytes() } else { 1 };
    by_group(gpu, "add_rows", (dtype, vec), &[x, bias, x], (rows, width), rows, 0)
}

/// Launches a kernel of `gate.cu`: pointers, then packs of a row, rows of a group, distance of the groups' vectors.
fn by_group(
    gpu: &Gpu,
    name: &'static str,
    (dtype, vec): (DType, usize),
    pointers: &[u64],
    (rows, width): (usize, usize),
    group: usize,
    stride: usize,
) -> Result<()> {
    let packs = width / vec;
    let count = rows * packs;
    let mut args: Vec<Arg> = pointers.iter().map(|&p| Arg::Ptr(p)).collect();
    args.extend([int(packs)?, int(group)?, int(stride)?, Arg::Long(count as i64)]);
    let variant = Variant { dtype, vec, steps: 0, head: 0 };
    gpu.launch((&GATE, name, variant), ((count.div_ceil(256), 1, 1), (256, 1, 1)), 0, &args)
}

/// `x + b`, recorded.
pub(crate) fn bias(x: &Tensor, b: &Tensor) -> Result<Tensor> {
    let device = device(x)?;
    let (rows, b_rows) = (Rows::dense(x)?, Rows::dense(b)?);
    let out = Out::new(&device, x.dtype(), x.elem_count())?;
    let vec = vec(x.dtype(), &[&rows, &b_rows]);
    let pointers = [rows.ptr, b_rows.ptr, out.ptr];
    by_group(&*gpu(&device)?, "add_rows", (x.dtype(), vec), &pointers, (rows.rows, rows.width), rows.rows, 0)?;
    record2("bias", [x, b], out.fresh(x.shape()), |[x, b], _, g| {
        Ok([wanted(x, || Ok(g.clone()))?, wanted(b, || sums::rows(g))?])
    })
}

/// `x + gate y`, recorded.
pub(crate) fn gate_residual(x: &Tensor, gate: &Tensor, y: &Tensor) -> Result<Tensor> {
    let out = gated(Some(x), gate, y)?;
    record3("gate_residual", [x, gate, y], out, |[x, gate, y], _, g| {
        let dx = wanted(x, || Ok(g.clone()))?;
        let (dgate, dy) = match (gate.track_op(), y.track_op()) {
            (true, track_y) => {
                let (dgate, dy) = sums::gate(g, gate, y, track_y)?;
                (Some(dgate), dy)
            }
            (false, true) => (None, Some(gated(None, gate, g)?.untracked(g)?)),
            (false, false) => (None, None),
        };
        Ok([dx, dgate, dy])
    })
}

fn gated(x: Option<&Tensor>, gate: &Tensor, y: &Tensor) -> Result<crate::record::Fresh> {
    let device = device(y)?;
    let x_rows = x.map(Rows::dense).transpose()?;
    let (gates, rows) = (Rows::new(gate)?, Rows::dense(y)?);
    let out = Out::new(&device, y.dtype(), y.elem_count())?;
    let mut all = vec![&gates, &rows];
    all.extend(&x_rows);
    let vec = vec(y.dtype(), &all);
    let pointers = [x_rows.as_ref().map_or(0, |x| x.ptr), gates.ptr, rows.ptr, out.ptr];
    let group = rows.rows / gates.rows;
    let sizes = (rows.rows, rows.width);
    by_group(&*gpu(&device)?, "gate_residual", (y.dtype(), vec), &pointers, sizes, group, gates.stride)?;
    Ok(out.fresh(y.shape()))
}
