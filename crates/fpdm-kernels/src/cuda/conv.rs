//! Convolution of pictures: kernels of 3×3 on tensor cores, everything else as patches times a matrix.

use candle_core::{CudaDevice, DType, Result, Tensor, bail};

use super::conv_hopper::Tile;
use super::gpu::{Arg, Gpu, Source, Variant, gpu, int};
use super::lt::{Epilogue, Factor, Product};
use super::pixels::{Finish, finish, patches, pooled};
use super::rows::{Out, Rows, device};
use crate::conv2d::Conv2d;
use crate::record::Fresh;

const CONV: Source =
    Source { name: "conv", text: concat!(include_str!("instructions.cuh"), include_str!("conv.cu")), own: false };

/// Patches of one go, in bytes.
const PATCHES: usize = 256 << 20;

/// Shared memory through which a block's results go, in bytes.
const ROOM: usize = 40960;

/// Shared memory that the largest kernel asks for, in bytes.
const MOST: usize = 165_504;

/// What a convolution sees: a source picture, made larger or spread, and where the kernel meets it.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) batch: usize,
    pub(super) channels: usize,
    pub(super) size: [usize; 2],
    /// How often a pixel is repeated along each side; negative: how far apart they are, with zeros between.
    pub(super) zoom: i32,
    pub(super) before: [i32; 2],
    pub(super) kernel: [usize; 2],
    pub(super) stride: usize,
    pub(super) out: [usize; 2],
}

impl View {
    /// Of `x` by a kernel (O, I, K, L).
    fn new(x: &Tensor, w: &Tensor, how: Conv2d) -> Result<Self> {
        let (batch, channels, height, width) = x.dims4()?;
        let (_, _, kh, kw) = w.dims4()?;
        let before = i32::try_from(how.before).map_err(candle_core::Error::wrap)?;
        Ok(Self {
            batch,
            channels,
            size: [height, width],
            zoom: i32::try_from(how.upsample).map_err(candle_core::Error::wrap)?,
            before: [before; 2],
            kernel: [kh, kw],
            stride: how.stride,
            out: [how.out(height, kh), how.out(width, kw)],
        })
    }

    /// Of the result's gradient by the turned kernel, for the gradient of the picture.
    fn back(x: &Tensor, w: &Tensor, g: &Tensor, how: Conv2d) -> Result<Self> {
        let (batch, channels, gh, gw) = g.dims4()?;
        let (_, _, height, width) = x.dims4()?;
        let (_, _, kh, kw) = w.dims4()?;
        let int = |n: usize| i32::try_from(n).map_err(candle_core::Error::wrap);
        let before = int(how.before)?;
        Ok(Self {
            batch,
            channels,
            size: [gh, gw],
            zoom: if how.stride == 1 { 1 } else { -int(how.stride)? },
            before: [int(kh)? - 1 - before, int(kw)? - 1 - before],
            kernel: [kh, kw],
            stride: 1,
            out: [height * how.upsample, width * how.upsample],
        })
    }

    fn area(&self) -> usize {
        self.out[0] * self.out[1]
    }

    /// Rows of a matrix of patches.
    fn taps(&self) -> usize {
        self.channels * self.kernel[0] * self.kernel[1]
    }

    /// Whether patches would be the picture itself.
    fn is_picture(&self) -> bool {
        self.kernel == [1, 1] && self.zoom == 1 && self.before == [0, 0] && self.stride == 1 && self.out == self.size
    }

    /// The kernels on tensor cores, if they are made for it: how many channels are in shared memory at a time.
    fn chunk(&self, gpu: &Gpu, dtype: DType) -> Option<usize> {
        let narrow = matches!(dtype, DType::BF16 | DType::F16);
        let small = self.area() < 1 << 30 && self.size[0] * self.size[1] < 1 << 30 && self.batch < 1 << 16;
        let able = gpu.arch >= (8, 0) && gpu.shared >= MOST;
        match self.stride {
            1 if able && narrow && small && self.kernel == [3, 3] => Some(64),
            2 if able && narrow && small && self.kernel == [3, 3] => Some(16),
            _ => None,
        }
    }

    /// Whether rows of the source at `ptr` are whole units of eight pixels, where a kernel needs them.
    fn fast(&self, ptr: u64) -> bool {
        let unit = match self.zoom {
            1 => 8,
            2 => 4,
            _ => return false,
        };
        let beside = (0..=2).contains(&self.before[0]);
        self.stride == 1 && beside && self.size[1].is_multiple_of(unit) && ptr.is_multiple_of(2 * unit as u64)
    }
}

/// Channels of the result that a block makes, in eights.
fn steps(outputs: usize) -> usize {
    match outputs {
        0..=8 => 1,
        9..=64 => 8,
        _ => 16,
    }
}

/// `act(conv(x, w) + b + residual)`, not recorded.
pub(crate) fn conv2d(
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    residual: Option<&Tensor>,
    how: Conv2d,
) -> Result<Fresh> {
    let view = View::new(x, w, how)?;
    let after = Finish { bias: b, add: residual, relu: how.relu, cap: how.cap };
    run(view, x, (w, w.dim(0)?, false), &after)
}

/// The gradient of the picture.
pub(crate) fn input_gradient(x: &Tensor, w: &Tensor, g: &Tensor, how: Conv2d) -> Result<Tensor> {
    let view = View::back(x, w, g, how)?;
    let large = run(view, g, (w, w.dim(1)?, true), &Finish::default())?.untracked(g)?;
    if how.upsample == 1 { Ok(large) } else { pooled(&large, how.upsample) }
}

fn run(view: View, x: &Tensor, (w, outputs, turned): (&Tensor, usize, bool), after: &Finish<'_>) -> Result<Fresh> {
    match view.chunk(&*gpu(&device(x)?)?, x.dtype()) {
        Some(chunk) => on_tensor_cores(view, x, (w, outputs, turned), after, chunk),
        None => by_patches(view, x, (w, outputs, turned), after),
    }
}

/// A convolution by a kernel on tensor cores, with the addresses of all it touches; 0 where there is nothing.
pub(super) struct Job<'a> {
    pub(super) view: View,
    pub(super) device: &'a CudaDevice,
    pub(super) dtype: DType,
    pub(super) source: u64,
    /// (O, I, 3, 3), those two numbers, and whether they change places and the kernel is turned.
    pub(super) weights: (u64, [usize; 2], bool),
    pub(super) outputs: usize,
    pub(super) bias: u64,
    pub(super) add: u64,
    pub(super) out: u64,
    pub(super) relu: bool,
    pub(super) most: f32,
}

impl Job<'_> {
    /// Whether rows of the source are whole units, where a kernel needs them.
    fn fast(&self) -> bool {
        self.view.fast(self.source)
    }

    /// Whether rows of the result are whole units of 16 bytes.
    fn wide_rows(&self) -> bool {
        self.view.out[1].is_multiple_of(8) && [self.add, self.out].iter().all(|p| p.is_multiple_of(16))
    }

    /// The weights in a kernel's own order, `count` elements of it, by `pack`, which is told that `rounded` besides.
    pub(super) fn packed(
        &self,
        pack: (&Source, &'static str, Variant),
        (count, rounded): (usize, usize),
    ) -> Result<Out> {
        let (weights, [outputs, inputs], turned) = self.weights;
        let packed = Out::new(self.device, self.dtype, count)?;
        let mut args = vec![Arg::Ptr(weights), Arg::Ptr(packed.ptr), int(outputs)?, int(inputs)?, int(rounded)?];
        args.extend([Arg::Int(turned.into()), Arg::Long(count as i64)]);
        gpu(self.device)?.launch(pack, ((count.div_ceil(256), 1, 1), (256, 1, 1)), 0, &args)?;
        Ok(packed)
    }
}

fn on_tensor_cores(
    view: View,
    x: &Tensor,
    (w, outputs, turned): (&Tensor, usize, bool),
    after: &Finish<'_>,
    chunk: usize,
) -> Result<Fresh> {
    let (device, dtype) = (device(x)?, x.dtype());
    let gpu = gpu(&device)?;
    let (source, weights, held) = (Rows::dense(x)?, Rows::dense(w)?, after.rows()?);
    let [bias, add] = held.each_ref().map(|rows| rows.as_ref().map_or(0, |rows| rows.ptr));
    let (o, i, ..) = w.dims4()?;
    let out = Out::new(&device, dtype, view.batch * outputs * view.area())?;
    let job = Job {
        view,
        device: &device,
        dtype,
        source: source.ptr,
        weights: (weights.ptr, [o, i], turned),
        outputs,
        bias,
        add,
        out: out.ptr,
        relu: after.relu,
        most: after.most(),
    };
    match Tile::of(&view, outputs) {
        Some(tile) if tile.runs_on(&gpu) && job.fast() && job.wide_rows() => tile.run(&gpu, &job)?,
        _ => by_warps(&gpu, &job, chunk)?,
    }
    let [out_h, out_w] = view.out;
    Ok(out.fresh((view.batch, outputs, out_h, out_w)))
}

/// By products of single warps, which every GPU from compute capability 8.0 on has.
fn by_warps(gpu: &Gpu, job: &Job<'_>, chunk: usize) -> Result<()> {
    let (view, outputs) = (job.view, job.outputs);
    let steps = steps(outputs);
    let variant = Variant { dtype: job.dtype, vec: 0, steps, head: chunk };
    let columns = 8 * steps;
    let (chunks, wide) = (view.channels.div_ceil(chunk), outputs.next_multiple_of(columns));
    let packed = job.packed((&CONV, "conv_pack", variant), (chunks * 9 * wide * chunk, wide))?;
    let [out_h, out_w] = view.out;
    let fast = job.fast();
    let mut args = [job.source, packed.ptr, job.bias, job.add, job.out].map(Arg::Ptr).to_vec();
    args.extend([int(view.channels)?, int(view.size[0])?, int(view.size[1])?]);
    args.extend([Arg::Int(view.zoom), Arg::Int(view.before[0]), int(outputs)?, int(out_h)?, int(out_w)?]);
    args.extend([Arg::Int(job.relu.into()), Arg::Float(job.most), Arg::Int(job.wide_rows().into())]);
    args.extend([Arg::Int(fast.into()), int(view.batch)?]);
    let tiles = out_h.div_ceil(8) * out_w.div_ceil(32);
    let tile = if chunk == 64 { 10 * 34 } else { 17 * 65 } * (chunk * 2 + 16);
    let weights = columns * (chunk * 2 + 16);
    let resident = 9 * weights + 2 * tile + ROOM;
    let threads = (256, 1, 1);
    if fast && chunks == 1 && wide == columns && steps <= 8 && resident <= gpu.shared {
        let grid = ((tiles * view.batch).min(gpu.processors), 1, 1);
        gpu.launch((&CONV, "conv_resident", variant), (grid, threads), resident, &args)
    } else {
        let grid = (tiles, wide / columns, view.batch);
        let shared = (tile * chunks.min(2) + 3 * weights).max(ROOM);
        gpu.launch((&CONV, "conv_forward", variant), (grid, threads), shared, &args)
    }
}

/// Runs `f` over so many samples at a time that their patches have room: with the first, how many, and the patches.
fn each_part(view: View, x: &Tensor, mut f: impl FnMut(usize, usize, &Rows) -> Result<()>) -> Result<()> {
    if view.is_picture() {
        return f(0, view.batch, &Rows::dense(x)?);
    }
    let one = view.taps() * view.area() * x.dtype().size_in_bytes();
    let most = (PATCHES / one.max(1)).clamp(1, view.batch);
    for first in (0..view.batch).step_by(most) {
        let count = most.min(view.batch - first);
        let part = x.narrow(0, first, count)?;
        f(first, count, &Rows::dense(&patches(View { batch: count, ..view }, &part)?)?)?;
    }
    Ok(())
}

fn by_patches(
    view: View,
    x: &Tensor,
    (w, outputs, turned): (&Tensor, usize, bool),
    after: &Finish<'_>,
) -> Result<Fresh> {
    let device = device(x)?;
    let gpu = gpu(&device)?;
    let dtype = x.dtype();
    let (area, taps) = (view.area(), view.taps());
    // Rows are results, columns the places of patches.
    let matrix = if turned { turn(w)? } else { w.clone() }.reshape((outputs, taps))?;
    let matrix = Rows::dense(&matrix)?;
    let out = Out::new(&device, dtype, view.batch * outputs * area)?;
    let bytes = dtype.size_in_bytes();
    each_part(view, x, |first, count, patches| {
        for sample in 0..count {
            multiply(
                &gpu,
                Product {
                    m: outputs,
                    n: area,
                    k: taps,
                    left: Factor { ptr: matrix.ptr, stride: taps, transposed: false },
                    right: Factor {
                        ptr: patches.ptr + (sample * taps * area * bytes) as u64,
                        stride: area,
                        transposed: false,
                    },
                    out: out.ptr + ((first + sample) * outputs * area * bytes) as u64,
                    stride: area,
                    dtype,
                    out_dtype: dtype,
                    add: None,
                    epilogue: Epilogue::Nothing,
                },
            )?;
        }
        Ok(())
    })?;
    let [out_h, out_w] = view.out;
    let y = out.fresh((view.batch, outputs, out_h, out_w));
    if after.is_nothing() { Ok(y) } else { finish(&y.untracked(x)?, after) }
}

fn multiply(gpu: &Gpu, product: Product) -> Result<()> {
    if !gpu.lt.multiply(&gpu.stream, &product)? {
        bail!("conv2d: cuBLASLt has no algorithm for {product:?}")
    }
    Ok(())
}

/// (O, I, K, L) as (I, O, K, L) with the places backwards.
fn turn(w: &Tensor) -> Result<Tensor> {
    let (o, i, kh, kw) = w.dims4()?;
    let places: Vec<u32> = (0..(kh * kw) as u32).rev().collect();
    let places = Tensor::from_vec(places, kh * kw, w.device())?;
    w.detach().reshape((o, i, kh * kw))?.index_select(&places, 2)?.transpose(0, 1)?.contiguous()
}

/// The gradient of the kernel.
pub(crate) fn weight_gradient(x: &Tensor, w: &Tensor, g: &Tensor, how: Conv2d) -> Result<Tensor> {
    let view = View::new(x, w, how)?;
    match view.chunk(&*gpu(&device(x)?)?, x.dtype()) {
        Some(chunk) => weight_on_tensor_cores(view, x, w, g, chunk),
        None => weight_by_patches(view, x, w, g),
    }
}

fn weight_on_tensor_cores(view: View, x: &Tensor, w: &Tensor, g: &Tensor, chunk: usize) -> Result<Tensor> {
    let (device, dtype) = (device(x)?, x.dtype());
    let gpu = gpu(&device)?;
    let variant = Variant { dtype, vec: 0, steps: 0, head: chunk };
    let outputs = w.dim(0)?;
    let [out_h, out_w] = view.out;
    let (source, gradient) = (Rows::dense(x)?, Rows::dense(g)?);
    let (depth, span) = if chunk == 64 { (8, 34) } else { (2, 65) };
    let (o_blocks, c_blocks) = (outputs.div_ceil(64), view.channels.div_ceil(64));
    let tiles = view.batch * out_h.div_ceil(depth) * out_w.div_ceil(32);
    // One block fills a multiprocessor: as many as there are, or every further one would only be more to add up.
    let splits = (gpu.processors / (o_blocks * c_blocks)).clamp(1, tiles);
    let partial = Out::new(&device, DType::F32, splits * o_blocks * c_blocks * 9 * 64 * 64)?;
    let wide_rows = out_w.is_multiple_of(8) && gradient.ptr.is_multiple_of(16);
    let mut args = [source.ptr, gradient.ptr, partial.ptr].map(Arg::Ptr).to_vec();
    args.extend([int(view.channels)?, int(view.size[0])?, int(view.size[1])?]);
    args.extend([Arg::Int(view.zoom), Arg::Int(view.before[0]), int(outputs)?, int(out_h)?, int(out_w)?]);
    args.extend([int(view.batch)?, Arg::Int(wide_rows.into()), Arg::Int(view.fast(source.ptr).into())]);
    let tall = (depth - 1) * view.stride + 3;
    let room = tall * span * 144 + 64 * (depth * 64 + 16);
    let grid = (splits, o_blocks, c_blocks);
    gpu.launch((&CONV, "conv_weight", variant), (grid, (256, 1, 1)), 2 * room, &args)?;

    let count = 9 * outputs * view.channels;
    let out = Out::new(&device, dtype, count)?;
    let args = [Arg::Ptr(partial.ptr), Arg::Ptr(out.ptr), int(splits)?, int(outputs)?, int(view.channels)?];
    gpu.launch((&CONV, "conv_weight_finish", variant), ((count.div_ceil(256), 1, 1), (256, 1, 1)), 0, &args)?;
    out.fresh(w.shape()).untracked(g)
}

fn weight_by_patches(view: View, x: &Tensor, w: &Tensor, g: &Tensor) -> Result<Tensor> {
    let gpu = gpu(&device(x)?)?;
    let dtype = x.dtype();
    let (area, taps, outputs) = (view.area(), view.taps(), w.dim(0)?);
    let bytes = dtype.size_in_bytes();
    let sum = Tensor::zeros((outputs, taps), DType::F32, x.device())?;
    let (to, gradient) = (Rows::dense(&sum)?, Rows::dense(g)?);
    each_part(view, x, |first, count, patches| {
        for sample in 0..count {
            multiply(
                &gpu,
                Product {
                    m: outputs,
                    n: taps,
                    k: area,
                    left: Factor {
                        ptr: gradient.ptr + ((first + sample) * outputs * area * bytes) as u64,
                        stride: area,
                        transposed: false,
                    },
                    right: Factor {
                        ptr: patches.ptr + (sample * taps * area * bytes) as u64,
                        stride: area,
                        transposed: true,
                    },
                    out: to.ptr,
                    stride: taps,
                    dtype,
                    out_dtype: DType::F32,
                    add: Some((to.ptr, taps)),
                    epilogue: Epilogue::Nothing,
                },
            )?;
        }
        Ok(())
    })?;
    sum.to_dtype(dtype)?.reshape(w.shape())
}
