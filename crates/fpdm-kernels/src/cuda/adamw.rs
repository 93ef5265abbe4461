//! AdamW, averages of weights and clipping on flat buffers, without asking the host.

use candle_core::{DType, Result, Tensor, bail};

use super::gpu::{Arg, Source, Variant, gpu};
use super::rows::{Out, address, device};

const ADAMW: Source = Source { name: "adamw", text: include_str!("adamw.cu"), own: false };
const BLOCKS: usize = 1024;

/// One step's numbers, in PyTorch's sense.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adamw {
    /// The learning rate.
    pub lr: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the squares.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The number of the step, from 1.
    pub step: u64,
    /// The largest norm of the gradient, infinite for none.
    pub max_norm: f64,
}

const F32S: Variant = Variant { dtype: DType::F32, vec: 1, steps: 0, head: 0 };

/// The norm of a flat f32 gradient, and what scales it to at most `most`.
fn clipping(gradient: &Tensor, most: f64) -> Result<(Out, Out)> {
    let device = device(gradient)?;
    let gpu = gpu(&device)?;
    let partial = Out::new(&device, DType::F32, BLOCKS)?;
    let (norm, scale) = (Out::new(&device, DType::F32, 1)?, Out::new(&device, DType::F32, 1)?);
    let count = Arg::Long(gradient.elem_count() as i64);
    let grid = ((BLOCKS, 1, 1), (256, 1, 1));
    let args = [Arg::Ptr(address(gradient)?), Arg::Ptr(partial.ptr), count];
    gpu.launch((&ADAMW, "squares", F32S), grid, 0, &args)?;
    let most = Arg::Float(most as f32);
    let args = [Arg::Ptr(partial.ptr), Arg::Int(BLOCKS as i32), most, Arg::Ptr(norm.ptr), Arg::Ptr(scale.ptr)];
    gpu.launch((&ADAMW, "clip", F32S), ((1, 1, 1), (256, 1, 1)), 0, &args)?;
    Ok((norm, scale))
}

/// The norm of a contiguous f32 tensor, a scalar on its device.
///
/// # Errors
/// If it is of another type, not contiguous or elsewhere.
pub fn norm(x: &Tensor) -> Result<Tensor> {
    if x.dtype() != DType::F32 || !x.is_contiguous() {
        bail!("norm: `x` must be contiguous f32, got {:?} {:?}", x.dtype(), x.stride())
    }
    clipping(x, f64::INFINITY)?.0.fresh(()).untracked(x)
}

/// One step of AdamW on flat f32 buffers on a GPU, **in place**: `master`, `exp_avg`, `exp_avg_sq` and the averages
/// `ema` (each with its decay, at most four) are overwritten, and `work`, if there is one, gets the weights in its own
/// type. The gradient `(len)` is first scaled to `max_norm`, as PyTorch's `clip_grad_norm_`. Returns the gradient's norm
/// before that, a scalar on the device; where it is no number the step changes nothing.
///
/// # Errors
/// If a buffer is not a contiguous f32 buffer of the same length on the GPU, or there are more than four averages.
pub fn adamw(
    how: Adamw,
    [master, exp_avg, exp_avg_sq, gradient]: [&Tensor; 4],
    ema: &[(f64, &Tensor)],
    work: Option<&Tensor>,
) -> Result<Tensor> {
    let (len, device) = (master.elem_count(), device(master)?);
    let gpu = gpu(&device)?;
    if ema.len() > 4 {
        bail!("adamw: at most four averages, got {}", ema.len())
    }
    for (name, t) in [("master", master), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq), ("gradient", gradient)]
        .into_iter()
        .chain(ema.iter().map(|(_, t)| ("ema", *t)))
    {
        if t.dtype() != DType::F32 || t.dims() != [len] || !t.is_contiguous() {
            bail!("adamw: `{name}` must be contiguous f32 of shape [{len}], got {:?} {:?}", t.dtype(), t.dims())
        }
    }
    if let Some(work) = work.filter(|w| w.elem_count() != len || !w.is_contiguous()) {
        bail!("adamw: `work` must be contiguous with {len} elements, got {:?}", work.dims())
    }
    let count = Arg::Long(len as i64);
    let g = Arg::Ptr(address(gradient)?);
    let (norm, scale) = clipping(gradient, how.max_norm)?;

    let mut args = vec![Arg::Ptr(address(master)?), Arg::Ptr(address(exp_avg)?), Arg::Ptr(address(exp_avg_sq)?), g];
    args.extend([Arg::Ptr(scale.ptr), Arg::Ptr(work.map_or(Ok(0), address)?)]);
    let (mut pointers, mut decays) = ([Arg::Ptr(0); 4], [Arg::Float(0.); 4]);
    for (i, (decay, average)) in ema.iter().enumerate() {
        (pointers[i], decays[i]) = (Arg::Ptr(address(average)?), Arg::Float(*decay as f32));
    }
    args.extend(pointers);
    args.extend(decays);
    let t = i32::try_from(how.step).unwrap_or(i32::MAX);
    let numbers = [
        how.beta1,
        how.beta2,
        how.lr / (1. - how.beta1.powi(t)),
        1. / (1. - how.beta2.powi(t)).sqrt(),
        how.eps,
        1. - how.lr * how.weight_decay,
    ];
    args.extend(numbers.map(|x| Arg::Float(x as f32)));
    args.push(count);
    let variant = Variant { dtype: work.map_or(DType::F32, Tensor::dtype), ..F32S };
    let blocks = len.div_ceil(256).clamp(1, 8192);
    gpu.launch((&ADAMW, "adamw", variant), ((blocks, 1, 1), (256, 1, 1)), 0, &args)?;
    norm.fresh(()).untracked(master)
}
