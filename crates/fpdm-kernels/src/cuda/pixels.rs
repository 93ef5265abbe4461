//! What surrounds convolutions of pictures: patches, what follows the sums, and the gradients of both.

use candle_core::{DType, Result, Tensor};

use super::conv::View;
use super::gpu::{Arg, Source, Variant, gpu, int};
use super::rows::{Out, Rows, device};
use super::sums::Partial;
use crate::conv2d::Conv2d;
use crate::record::Fresh;

const PIXELS: Source = Source { name: "pixels", text: include_str!("pixels.cu"), own: false };

/// What follows the sums of a convolution.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Finish<'a> {
    pub(super) bias: Option<&'a Tensor>,
    pub(super) add: Option<&'a Tensor>,
    pub(super) relu: bool,
    pub(super) cap: Option<u8>,
}

impl Finish<'_> {
    pub(super) fn is_nothing(&self) -> bool {
        self.bias.is_none() && self.add.is_none() && !self.relu && self.cap.is_none()
    }

    /// The largest result.
    pub(super) fn most(&self) -> f32 {
        self.cap.map_or(f32::INFINITY, f32::from)
    }

    /// Bias and addend in memory.
    pub(super) fn rows(&self) -> Result<[Option<Rows>; 2]> {
        let dense = |t: Option<&Tensor>| t.map(Rows::dense).transpose();
        Ok([dense(self.bias)?, dense(self.add)?])
    }
}

fn plain(dtype: DType, vec: usize) -> Variant {
    Variant { dtype, vec, steps: 0, head: 0 }
}

/// Enough blocks to fill any GPU; the loops in the kernels do the rest.
fn blocks(count: usize) -> ((usize, usize, usize), (u32, u32, u32)) {
    ((count.div_ceil(256).clamp(1, 8192), 1, 1), (256, 1, 1))
}

/// Elements of one access, where every run of `len` elements behind the pointers starts at a multiple of them.
fn vec_of(dtype: DType, len: usize, pointers: &[u64]) -> usize {
    let wide = 16 / dtype.size_in_bytes();
    if len.is_multiple_of(wide) && pointers.iter().all(|p| p.is_multiple_of(16)) { wide } else { 1 }
}

/// (B, C, H, W) → (B, C K L, OH OW).
pub(super) fn patches(view: View, x: &Tensor) -> Result<Tensor> {
    let device = device(x)?;
    let rows = Rows::dense(x)?;
    let [kh, kw] = view.kernel;
    let [oh, ow] = view.out;
    let (taps, area) = (view.channels * kh * kw, oh * ow);
    let count = view.batch * taps * area;
    let out = Out::new(&device, x.dtype(), count)?;
    let mut args = vec![Arg::Ptr(rows.ptr), Arg::Ptr(out.ptr), int(view.channels)?, int(view.size[0])?];
    args.extend([int(view.size[1])?, Arg::Int(view.zoom), Arg::Int(view.before[0]), Arg::Int(view.before[1])]);
    args.extend([int(view.stride)?, int(kh)?, int(kw)?, int(oh)?, int(ow)?, Arg::Long(count as i64)]);
    gpu(&device)?.launch((&PIXELS, "patches", plain(x.dtype(), 0)), blocks(count), 0, &args)?;
    out.fresh((view.batch, taps, area)).untracked(x)
}

/// `act(y + bias + add)`.
pub(super) fn finish(y: &Tensor, after: &Finish<'_>) -> Result<Fresh> {
    let device = device(y)?;
    let (_, channels, height, width) = y.dims4()?;
    let rows = Rows::dense(y)?;
    let [bias, add] = after.rows()?;
    let out = Out::new(&device, y.dtype(), y.elem_count())?;
    let ptr = |rows: &Option<Rows>| Arg::Ptr(rows.as_ref().map_or(0, |rows| rows.ptr));
    let args = [
        Arg::Ptr(rows.ptr),
        ptr(&bias),
        ptr(&add),
        Arg::Ptr(out.ptr),
        int(channels)?,
        int(height * width)?,
        Arg::Int(after.relu.into()),
        Arg::Float(after.most()),
        Arg::Long(y.elem_count() as i64),
    ];
    gpu(&device)?.launch((&PIXELS, "finish", plain(y.dtype(), 0)), blocks(y.elem_count()), 0, &args)?;
    Ok(out.fresh(y.shape()))
}

/// `act(y + add)`, not recorded.
pub(crate) fn joined(y: &Tensor, add: &Tensor, how: Conv2d) -> Result<Fresh> {
    finish(y, &Finish { add: Some(add), relu: how.relu, cap: how.cap, ..Finish::default() })
}

/// The gradient before the activation whose result is `y`, and its sums over all but the channels if they are asked for.
pub(crate) fn through(y: &Tensor, g: &Tensor, how: Conv2d, sums: bool) -> Result<(Tensor, Option<Tensor>)> {
    let acts = how.relu || how.cap.is_some();
    if !acts && !sums {
        return Ok((g.clone(), None));
    }
    let device = device(g)?;
    let (batch, channels, height, width) = g.dims4()?;
    let area = height * width;
    let (gs, ys) = (Rows::dense(g)?, if acts { Some(Rows::dense(y)?) } else { None });
    let out = if acts { Some(Out::new(&device, g.dtype(), g.elem_count())?) } else { None };
    let partial = if sums { Some(Partial::new(&device, (g.dtype(), 1), (1, batch, channels))?) } else { None };
    let pointers = [gs.ptr, ys.as_ref().map_or(0, |y| y.ptr), out.as_ref().map_or(0, |o| o.ptr)];
    let vec = vec_of(g.dtype(), area, &pointers);
    let most = how.cap.map_or(f32::INFINITY, f32::from);
    let mut args = pointers.map(Arg::Ptr).to_vec();
    args.extend([Arg::Ptr(partial.as_ref().map_or(0, |p| p.sums.ptr)), int(area)?]);
    args.extend([Arg::Int(how.relu.into()), Arg::Float(most)]);
    let grid = ((channels, batch, 1), (256, 1, 1));
    gpu(&device)?.launch((&PIXELS, "masked_sums", plain(g.dtype(), vec)), grid, 0, &args)?;
    let sums = match partial {
        None => None,
        Some(partial) => Some(partial.total()?.fresh(channels).untracked(g)?),
    };
    let g = match out {
        None => g.clone(),
        Some(out) => out.fresh(g.shape()).untracked(g)?,
    };
    Ok((g, sums))
}

/// The sum of every `n` by `n` pixels.
pub(super) fn pooled(large: &Tensor, n: usize) -> Result<Tensor> {
    let device = device(large)?;
    let (batch, channels, height, width) = large.dims4()?;
    let rows = Rows::dense(large)?;
    let shape = (batch, channels, height / n, width / n);
    let count = batch * channels * shape.2 * shape.3;
    let out = Out::new(&device, large.dtype(), count)?;
    let args = [Arg::Ptr(rows.ptr), Arg::Ptr(out.ptr), int(shape.3)?, int(n)?, Arg::Long(count as i64)];
    gpu(&device)?.launch((&PIXELS, "pooled", plain(large.dtype(), 0)), blocks(count), 0, &args)?;
    out.fresh(shape).untracked(large)
}

/// Whether the kernels' grids have room for so many channels and samples.
pub(crate) fn fits(batch: usize, channels: usize) -> bool {
    batch < 1 << 16 && channels < 1 << 16
}

/// `act(conv(x, w) + b)` with one kernel a channel, not recorded.
pub(crate) fn depthwise_conv2d(x: &Tensor, w: &Tensor, b: Option<&Tensor>, how: Conv2d) -> Result<Tensor> {
    let device = device(x)?;
    let (batch, channels, height, width) = x.dims4()?;
    let (_, _, kh, kw) = w.dims4()?;
    let (oh, ow) = (how.out(height, kh), how.out(width, kw));
    let (rows, weights) = (Rows::dense(x)?, Rows::dense(w)?);
    let bias = b.map(Rows::dense).transpose()?;
    let out = Out::new(&device, x.dtype(), batch * channels * oh * ow)?;
    let mut args = [rows.ptr, weights.ptr, bias.as_ref().map_or(0, |b| b.ptr), out.ptr].map(Arg::Ptr).to_vec();
    args.extend([
        int(height)?,
        int(width)?,
        int(how.before)?,
        int(how.stride)?,
        int(kh)?,
        int(kw)?,
        int(oh)?,
        int(ow)?,
    ]);
    args.extend([Arg::Int(how.relu.into()), Arg::Float(how.cap.map_or(f32::INFINITY, f32::from))]);
    let grid = (((oh * ow).div_ceil(256), channels, batch), (256, 1, 1));
    gpu(&device)?.launch((&PIXELS, "depthwise", plain(x.dtype(), 0)), grid, 0, &args)?;
    out.fresh((batch, channels, oh, ow)).untracked(x)
}

/// Mean and variance (B, G, 1) in f32 of each group of channels, not recorded.
pub(crate) fn moments(x: &Tensor, groups: usize) -> Result<(Tensor, Tensor)> {
    let device = device(x)?;
    let (batch, channels, height, width) = x.dims4()?;
    let count = channels / groups * height * width;
    let rows = Rows::dense(x)?;
    let (mean, variance) =
        (Out::new(&device, DType::F32, batch * groups)?, Out::new(&device, DType::F32, batch * groups)?);
    let args = [Arg::Ptr(rows.ptr), Arg::Ptr(mean.ptr), Arg::Ptr(variance.ptr), int(count)?];
    let variant = plain(x.dtype(), vec_of(x.dtype(), count, &[rows.ptr]));
    gpu(&device)?.launch((&PIXELS, "moments", variant), ((groups, batch, 1), (256, 1, 1)), 0, &args)?;
    let shape = (batch, groups, 1);
    Ok((mean.fresh(shape).untracked(x)?, variance.fresh(shape).untracked(x)?))
}

/// `x factor + summand` with one of each (f32) for a channel of a sample, then SiLU if asked for; not recorded.
pub(crate) fn affine(x: &Tensor, factor: &Tensor, summand: &Tensor, silu: bool) -> Result<Tensor> {
    let device = device(x)?;
    let (batch, channels, height, width) = x.dims4()?;
    let area = height * width;
    let (rows, factors, summands) = (Rows::dense(x)?, Rows::dense(factor)?, Rows::dense(summand)?);
    let out = Out::new(&device, x.dtype(), x.elem_count())?;
    let vec = vec_of(x.dtype(), area, &[rows.ptr, out.ptr]);
    let mut args = [rows.ptr, factors.ptr, summands.ptr, out.ptr].map(Arg::Ptr).to_vec();
    args.extend([int(area)?, Arg::Int(silu.into())]);
    let grid = ((area.div_ceil(256 * vec), channels, batch), (256, 1, 1));
    gpu(&device)?.launch((&PIXELS, "affine", plain(x.dtype(), vec)), grid, 0, &args)?;
    out.fresh(x.shape()).untracked(x)
}
