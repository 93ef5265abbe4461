//! Operations on rows that fit into the registers of a warp: modulated layer norm, softmax.

use candle_core::{DType, Result, Tensor};

use super::gpu::{Arg, Source, Variant, gpu, int};
use super::map;
use super::rows::{Out, Rows, device, vec};
use super::sums::Partial;
use crate::record::{record1, record3, wanted};

const NORM: Source = Source { name: "norm", text: include_str!("norm.cu"), own: false };
const WARPS: usize = 4;
/// Elements of a row that a lane can hold without spilling, in the kernel that holds most.
const LANE: usize = 64;

/// Whether a row of `width` elements fits.
pub(crate) fn fits(width: usize) -> bool {
    width <= 32 * LANE
}

fn variant(dtype: DType, vec: usize, width: usize) -> Variant {
    Variant { dtype, vec, steps: (width / vec).div_ceil(32), head: 0 }
}

/// `norm(x) (1 + scale) + shift`, recorded. The width must fit.
pub(crate) fn layer_norm_modulate(x: &Tensor, shift: &Tensor, scale: &Tensor, eps: f64) -> Result<Tensor> {
    let device = device(x)?;
    let (rows, shifts, scales) = (Rows::dense(x)?, Rows::new(shift)?, Rows::new(scale)?);
    let vec = vec(x.dtype(), &[&rows, &shifts, &scales]);
    let out = Out::new(&device, x.dtype(), x.elem_count())?;
    let args = [
        Arg::Ptr(rows.ptr),
        Arg::Ptr(shifts.ptr),
        Arg::Ptr(scales.ptr),
        Arg::Ptr(out.ptr),
        int(rows.width / vec)?,
        int(rows.rows / shifts.rows)?,
        int(shifts.stride)?,
        int(scales.stride)?,
        Arg::Float(eps as f32),
        int(rows.rows)?,
    ];
    let kernel = (&NORM, "norm_forward", variant(x.dtype(), vec, rows.width));
    gpu(&device)?.launch(kernel, ((rows.rows.div_ceil(WARPS), 1, 1), (32, WARPS as u32, 1)), 0, &args)?;
    record3("layer_norm_modulate", [x, shift, scale], out.fresh(x.shape()), move |[x, shift, scale], _, g| {
        let (dx, both) = gradients(x, scale, g, None, eps)?;
        let both = both.total()?.fresh((scale.dim(0)?, 2 * scale.dim(1)?)).untracked(x)?;
        let width = scale.dim(1)?;
        let (dshift, dscale) = (both.narrow(1, 0, width)?, both.narrow(1, width, width)?);
        let wanted = |arg: &Tensor, gradient| arg.track_op().then_some(gradient);
        Ok([wanted(x, dx), wanted(shift, dshift), wanted(scale, dscale)])
    })
}

/// The gradient of `x`, to which `plus` is added; those of shift and scale side by side are added to `both` (B, 2 D) in f32,
/// in place.
pub(crate) fn norm_gradients(
    (x, scale): (&Tensor, &Tensor),
    g: &Tensor,
    plus: Option<&Tensor>,
    eps: f64,
    both: &Tensor,
) -> Result<Tensor> {
    let (dx, partial) = gradients(x, scale, g, plus, eps)?;
    partial.add_to(Rows::dense(both)?.ptr)?;
    Ok(dx)
}

fn gradients(x: &Tensor, scale: &Tensor, g: &Tensor, plus: Option<&Tensor>, eps: f64) -> Result<(Tensor, Partial)> {
    let device = device(x)?;
    let (rows, scales, grads) = (Rows::dense(x)?, Rows::new(scale)?, Rows::dense(g)?);
    let plus = plus.map(Rows::dense).transpose()?;
    let mut all = vec![&rows, &scales, &grads];
    all.extend(&plus);
    let vec = vec(x.dtype(), &all);
    let (groups, width) = (scales.rows, rows.width);
    let group = rows.rows / groups;
    let packs = width / vec;
    let team = packs.next_multiple_of(32).min(256);
    let teams = 256 / team;
    // Twice as many blocks as run at once, at 128 registers a thread, and at least four rounds each.
    let blocks = gpu(&device)?.processors * 2 * (512 / (team * teams));
    let chunks = (blocks / groups).clamp(1, group.div_ceil(8 * teams));
    let chunk = group.div_ceil(chunks);
    let chunks = group.div_ceil(chunk);
    let dx = Out::new(&device, x.dtype(), x.elem_count())?;
    let partial = Partial::new(&device, (x.dtype(), vec), (groups, chunks, 2 * width))?;
    let args = [
        Arg::Ptr(rows.ptr),
        Arg::Ptr(scales.ptr),
        Arg::Ptr(grads.ptr),
        Arg::Ptr(plus.as_ref().map_or(0, |p| p.ptr)),
        Arg::Ptr(dx.ptr),
        Arg::Ptr(partial.sums.ptr),
        int(packs)?,
        int(group)?,
        int(chunk)?,
        int(scales.stride)?,
        Arg::Float(eps as f32),
    ];
    let variant = Variant { dtype: x.dtype(), vec, steps: packs.div_ceil(team), head: 0 };
    let shared = (2 * width).max(8 * team / 32 * teams) * size_of::<f32>();
    let grid = ((chunks, groups, 1), (team as u32, teams as u32, 1));
    gpu(&device)?.launch((&NORM, "norm_backward", variant), grid, shared, &args)?;
    Ok((dx.fresh(x.shape()).untracked(x)?, partial))
}

/// `sum = x + gate y` and `norm(sum) (1 + scale) + shift`, one pass where nothing is tracked. The width must fit.
pub(crate) fn gate_residual_norm(
    (x, gate, y): (&Tensor, &Tensor, &Tensor),
    (shift, scale): (&Tensor, &Tensor),
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    if [x, gate, y, shift, scale].iter().any(|t| t.track_op()) {
        let sum = map::gate_residual(x, gate, y)?;
        let out = layer_norm_modulate(&sum, shift, scale, eps)?;
        return Ok((sum, out));
    }
    let device = device(x)?;
    let (xs, gates, ys) = (Rows::dense(x)?, Rows::new(gate)?, Rows::dense(y)?);
    let (shifts, scales) = (Rows::new(shift)?, Rows::new(scale)?);
    let vec = vec(x.dtype(), &[&xs, &gates, &ys, &shifts, &scales]);
    let (sum, out) = (Out::new(&device, x.dtype(), x.elem_count())?, Out::new(&device, x.dtype(), x.elem_count())?);
    let mut args: Vec<Arg> =
        [xs.ptr, gates.ptr, ys.ptr, shifts.ptr, scales.ptr, sum.ptr, out.ptr].map(Arg::Ptr).to_vec();
    args.extend([int(xs.width / vec)?, int(xs.rows / gates.rows)?, int(gates.stride)?]);
    args.extend([int(shifts.stride)?, int(scales.stride)?, Arg::Float(eps as f32), int(xs.rows)?]);
    let kernel = (&NORM, "gate_norm_forward", variant(x.dtype(), vec, xs.width));
    gpu(&device)?.launch(kernel, ((xs.rows.div_ceil(WARPS), 1, 1), (32, WARPS as u32, 1)), 0, &args)?;
    Ok((sum.fresh(x.shape()).untracked(x)?, out.fresh(x.shape()).untracked(x)?))
}

/// The softmax of the last dimension, recorded. The width must fit.
pub(crate) fn softmax(x: &Tensor) -> Result<Tensor> {
    let rows = Rows::dense(x)?;
    let out = by_rows("softmax_forward", x, &[&rows])?;
    record1("softmax", [x], out.fresh(x.shape()), |[x], y, g| {
        Ok([wanted(x, || {
            let (ys, gs) = (Rows::dense(y)?, Rows::dense(g)?);
            by_rows("softmax_backward", y, &[&ys, &gs])?.fresh(y.shape()).untracked(g)
        })?])
    })
}

fn by_rows(name: &'static str, like: &Tensor, inputs: &[&Rows]) -> Result<Out> {
    let device = device(like)?;
    let vec = vec(like.dtype(), inputs);
    let Rows { rows, width, .. } = inputs[0];
    let out = Out::new(&device, like.dtype(), like.elem_count())?;
    let mut args: Vec<Arg> = inputs.iter().map(|r| Arg::Ptr(r.ptr)).collect();
    args.extend([Arg::Ptr(out.ptr), int(width / vec)?, int(*rows)?]);
    let kernel = (&NORM, name, variant(like.dtype(), vec, *width));
    gpu(&device)?.launch(kernel, ((rows.div_ceil(WARPS), 1, 1), (32, WARPS as u32, 1)), 0, &args)?;
    Ok(out)
}
