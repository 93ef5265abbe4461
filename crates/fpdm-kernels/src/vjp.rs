//! The same operations with the way back in the caller's hands.
//!
//! Candle's graph keeps what it likes, adds every gradient into zeros, and rounds sums over many uses of a weight to its
//! type after each. A caller that knows its network can keep less, add the products of all uses up where they are made,
//! in `f32`, and skip the rest. Nothing here builds a graph: arguments are taken as they are, results have no history.
//!
//! [`supports`] says where these functions have kernels; elsewhere they return an error.

mod sums;

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Result, Tensor, bail};

use crate::conv2d::{self, Conv2d};
use crate::dispatch::{Route, by_dtype, route};
use crate::linear::{self, project};
use crate::record::{Fresh, record1, record2, record3, wanted};
use crate::{attention as forward, gate_residual, gelu, layer_norm_modulate as norm};

pub use sums::{GradientSum, WeightSum};

/// Whether all functions of this module work on tensors like `x`, rows of `width` and heads of `head` elements.
pub fn supports(x: &Tensor, width: usize, head: usize) -> bool {
    let _ = (width, head);
    match route(x) {
        Route::Cpu => true,
        #[cfg(feature = "cuda")]
        Route::Cuda => crate::cuda::row_fits(width) && crate::cuda::attention_fits(head),
        _ => false,
    }
}

fn unsupported<T>(op: &str, x: &Tensor) -> Result<T> {
    bail!("{op}: no kernels for {:?} on {:?}; ask `vjp::supports` first", x.dtype(), x.device().location())
}

/// `gelu(a)` and its argument `a = x wᵀ + b + r`; shapes as in [`linear_gelu`](crate::linear_gelu) and
/// [`linear_add_gelu`](crate::linear_add_gelu).
///
/// # Errors
/// If shapes, types or devices do not fit, or there are no kernels.
pub fn linear_gelu(x: &Tensor, w: &Tensor, b: Option<&Tensor>, r: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
    linear::check_arguments("vjp::linear_gelu", x, w, b)?;
    let (x, w) = (&x.detach(), &w.detach());
    let (b, r) = (b.map(Tensor::detach), r.map(Tensor::detach));
    match route(x) {
        Route::Cpu => {
            let argument = project::<false>(x, w, b.as_ref(), r.as_ref())?.untracked(x)?;
            Ok((gelu::gelu(&argument)?, argument))
        }
        #[cfg(feature = "cuda")]
        Route::Cuda => crate::cuda::linear_gelu_with_argument(x, w, b.as_ref(), r.as_ref()),
        _ => unsupported("vjp::linear_gelu", x),
    }
}

/// [`attention`](crate::attention), and what [`attention_gradient`] wants of it.
///
/// # Errors
/// If shapes do not fit, or there are no kernels.
pub fn attention(qkv: &Tensor, heads: usize) -> Result<(Tensor, Attention)> {
    let qkv = &qkv.detach();
    match route(qkv) {
        Route::Cpu => {
            let out = forward::attention(qkv, heads)?;
            Ok((out.clone(), Attention { out, sums: None }))
        }
        #[cfg(feature = "cuda")]
        Route::Cuda => {
            let (out, sums) = crate::cuda::attention_with_sums(qkv, heads)?;
            Ok((out.clone(), Attention { out, sums: Some(sums) }))
        }
        _ => unsupported("vjp::attention", qkv),
    }
}

/// What is kept of an attention.
#[derive(Clone, Debug)]
pub struct Attention {
    out: Tensor,
    /// Logarithms of the rows' sums of exponentials, where the kernels want them.
    sums: Option<Tensor>,
}

impl Attention {
    /// The result, (B, T, D).
    pub fn out(&self) -> &Tensor {
        &self.out
    }
}

/// The gradient of `qkv` (B, T, 3 D) for the gradient `g` (B, T, D) of the result.
///
/// # Errors
/// If shapes do not fit, or there are no kernels.
pub fn attention_gradient(qkv: &Tensor, heads: usize, kept: &Attention, g: &Tensor) -> Result<Tensor> {
    let _ = &kept.sums;
    match route(qkv) {
        Route::Cpu => by_dtype!(qkv, cpu_attention(qkv, heads, g)),
        #[cfg(feature = "cuda")]
        Route::Cuda => match &kept.sums {
            Some(sums) => crate::cuda::attention_gradient(qkv, heads, &kept.out, sums, g),
            None => bail!("vjp::attention_gradient: `kept` was made on another device"),
        },
        _ => unsupported("vjp::attention_gradient", qkv),
    }
}

fn cpu_attention<T: crate::cpu::simd::Real>(qkv: &Tensor, heads: usize, g: &Tensor) -> Result<Tensor> {
    forward::backward::<T>(qkv, heads, g)?.untracked(g)
}

/// `g w`, the gradient of `x` in `x wᵀ`.
///
/// # Errors
/// If shapes do not fit, or there are no kernels.
pub fn input_gradient(g: &Tensor, w: &Tensor) -> Result<Tensor> {
    match route(g) {
        Route::Cpu => linear::input_gradient(g, w),
        #[cfg(feature = "cuda")]
        Route::Cuda => crate::cuda::input_gradient(g, w),
        _ => unsupported("vjp::input_gradient", g),
    }
}

/// `gelu(argument)`, which the gradient of what multiplies it wants, and the gradient of `argument` for the gradient `g` of
/// that; the sum of the latter's rows is added to `bias`.
///
/// Takes both tensors: on a GPU the results are where they were, so that nothing else may hold their memory.
///
/// # Errors
/// If shapes do not fit, or there are no kernels.
pub fn gelu_gradient(argument: Tensor, g: Tensor, bias: Option<&mut WeightSum>) -> Result<(Tensor, Tensor)> {
    if argument.shape() != g.shape() {
        bail!("vjp::gelu_gradient: `g` must be {:?} like `argument`, got {:?}", argument.dims(), g.dims())
    }
    match route(&g) {
        Route::Cpu => {
            let gradient = gelu::gradient(&argument, &g)?;
            if let Some(bias) = bias {
                bias.add_rows(&gradient)?;
            }
            Ok((gelu::gelu(&argument.detach())?, gradient))
        }
        #[cfg(feature = "cuda")]
        Route::Cuda => crate::cuda::gelu_gradient(&argument, &g, bias.map(|bias| &bias.sum)),
        _ => unsupported("vjp::gelu_gradient", &g),
    }
}

/// The gradient of `y` (B, T, D) in `x + gate y`; that of `gate` (B, D) is added to `of_gate`, and that of `x` is `g`.
///
/// # Errors
/// If shapes do not fit, or there are no kernels.
pub fn gate_gradients(g: &Tensor, gate: &Tensor, y: &Tensor, of_gate: &mut WeightSum) -> Result<Tensor> {
    of_gate.fits(gate.dims())?;
    match route(g) {
        Route::Cpu => {
            let (dgate, dy) = gate_residual::gradients(g, gate, y)?;
            of_gate.add(&dgate)?;
            Ok(dy)
        }
        #[cfg(feature = "cuda")]
        Route::Cuda => crate::cuda::gate_gradients(g, gate, y, &of_gate.sum),
        _ => unsupported("vjp::gate_gradients", g),
    }
}

/// `sum = x + gate y` and `norm(sum) (1 + scale) + shift`, both.
///
/// # Errors
/// If shapes do not fit, or there are no kernels.
pub fn gate_residual_norm(
    (x, gate, y): (&Tensor, &Tensor, &Tensor),
    (shift, scale): (&Tensor, &Tensor),
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    match route(x) {
        Route::Cpu => {
            let sum = gate_residual::gate_residual(x, gate, y)?;
            let out = norm::layer_norm_modulate(&sum, shift, scale, eps)?;
            Ok((sum, out))
        }
        #[cfg(feature = "cuda")]
        Route::Cuda => crate::cuda::gate_residual_norm((x, gate, y), (shift, scale), eps),
        _ => unsupported("vjp::gate_residual_norm", x),
    }
}

/// The gradient of `x` in `norm(x) (1 + scale) + shift`, with `plus` added if there is one; those of shift and scale are
/// added to `both`, side by side (B, 2 D).
///
/// # Errors
/// If shapes do not fit, or there are no kernels.
pub fn norm_gradients(
    (x, scale): (&Tensor, &Tensor),
    g: &Tensor,
    plus: Option<&Tensor>,
    eps: f64,
    both: &mut WeightSum,
) -> Result<Tensor> {
    let (batch, width) = scale.dims2()?;
    both.fits(&[batch, 2 * width])?;
    match route(x) {
        Route::Cpu => {
            let (dx, vectors) = norm::gradients(x, scale, g, eps)?;
            both.add(&vectors)?;
            match plus {
                Some(plus) => dx + plus,
                None => Ok(dx),
            }
        }
        #[cfg(feature = "cuda")]
        Route::Cuda => crate::cuda::norm_gradients((x, scale), g, plus, eps, &both.sum),
        _ => unsupported("vjp::norm_gradients", x),
    }
}

/// Whether [`conv2d_gradients`] works on pictures like `x`, (B, C, H, W), with results of `outputs` channels.
pub fn supports_pictures(x: &Tensor, outputs: usize) -> bool {
    let _ = outputs;
    match route(x) {
        Route::Cpu => true,
        #[cfg(feature = "cuda")]
        Route::Cuda => x.rank() == 4 && crate::cuda::pixels_fit(x.dims()[0], x.dims()[1].max(outputs)),
        _ => false,
    }
}

/// What [`conv2d_gradients`] finds.
#[derive(Clone, Debug)]
pub struct ConvGradients {
    /// Before the activation: that of the residual, where there is one.
    pub sums: Tensor,
    /// Of the picture.
    pub x: Tensor,
    /// Of the kernel.
    pub w: Tensor,
    /// Of the bias, if there is one.
    pub b: Tensor,
}

/// The gradients of [`crate::conv2d()`] of `x` and `w` for the gradient `g` of its result `y`, which is what tells
/// where the activation was.
///
/// # Errors
/// If shapes do not fit, or there are no kernels.
pub fn conv2d_gradients(x: &Tensor, w: &Tensor, y: &Tensor, g: &Tensor, how: Conv2d) -> Result<ConvGradients> {
    if y.shape() != g.shape() {
        bail!("vjp::conv2d_gradients: `g` must be {:?} like `y`, got {:?}", y.dims(), g.dims())
    }
    if !supports_pictures(x, w.dims().first().copied().unwrap_or(0)) {
        return unsupported("vjp::conv2d_gradients", x);
    }
    let conv2d::Gradients { sums, x, w, b } = conv2d::gradients(x, w, y, g, how)?;
    Ok(ConvGradients { sums, x, w, b })
}

/// A function of two tensors and some weights whose way back is given: `out` again, now with a history.
///
/// `backward` takes the gradient of `out` and returns those of the two inputs and of the weights, in their order and
/// types. One node of the graph instead of one for each operation inside: nothing between is kept by the graph, and no
/// gradient between is added into zeros. `out` is copied once.
///
/// # Errors
/// If there are no kernels for `out`.
pub fn opaque(
    inputs: [&Tensor; 2],
    weights: &[&Tensor],
    out: &Tensor,
    backward: impl Fn(&Tensor) -> Result<([Tensor; 2], Vec<Tensor>)> + Send + Sync + 'static,
) -> Result<Tensor> {
    // Candle's nodes have at most three inputs. The third here is a number that depends on all weights; its own way back
    // hands each weight the gradient that the node has left for it.
    let left: Arc<Mutex<Vec<Option<Tensor>>>> = Arc::new(Mutex::new(vec![None; weights.len()]));
    let mut sum = zero(out)?.untracked(out)?;
    let tracked: Vec<usize> = (0..weights.len()).filter(|&i| weights[i].track_op()).collect();
    for pair in tracked.chunks(2) {
        let (i, j, left) = (pair[0], pair[pair.len() - 1], left.clone());
        let found = move |i: usize, w: &Tensor| -> Result<Option<Tensor>> {
            Ok(Some(match left.lock().unwrap_or_else(PoisonError::into_inner)[i].take() {
                Some(gradient) => gradient,
                None => w.zeros_like()?.detach(),
            }))
        };
        // The number itself has no gradient, but the walk back must reach the next pair.
        let on = |sum: &Tensor| wanted(sum, || Ok(sum.zeros_like()?.detach()));
        sum = match i == j {
            true => {
                record2("weight", [weights[i], &sum], zero(out)?, move |[w, sum], _, _| Ok([found(i, w)?, on(sum)?]))
            }
            false => record3("weights", [weights[i], weights[j], &sum], zero(out)?, move |[v, w, sum], _, _| {
                Ok([found(i, v)?, found(j, w)?, on(sum)?])
            }),
        }?;
    }
    let copy = copied(out)?;
    record3("opaque", [inputs[0], inputs[1], &sum], copy, move |[a, b, sum], _, g| {
        let ([da, db], gradients) = backward(&g.detach())?;
        *left.lock().unwrap_or_else(PoisonError::into_inner) = gradients.into_iter().map(Some).collect();
        let asked = |arg: &Tensor, gradient| arg.track_op().then_some(gradient);
        Ok([asked(a, da), asked(b, db), wanted(sum, || Ok(sum.zeros_like()?.detach()))?])
    })
}

fn copied(x: &Tensor) -> Result<Fresh> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    Fresh::copy_of(&storage, layout)
}

fn zero(like: &Tensor) -> Result<Fresh> {
    match route(like) {
        Route::Cpu if like.dtype() == DType::F64 => Ok(Fresh::cpu(vec![0f64], ())),
        Route::Cpu => Ok(Fresh::cpu(vec![0f32], ())),
        #[cfg(feature = "cuda")]
        Route::Cuda => crate::cuda::zero(like),
        _ => unsupported("vjp", like),
    }
}

/// A number that stands for `Σ y g` in a sum that is to be differentiated: its gradient for `y` is `g`, and its value is
/// 0. Carries a gradient into a graph without the passes over memory that the real sum would take.
///
/// Only as a summand of what [`Tensor::backward`] is called on: it takes the gradient that reaches it to be 1.
///
/// # Errors
/// If `g` is not like `y`, or there are no kernels.
pub fn cotangent(y: &Tensor, g: &Tensor) -> Result<Tensor> {
    if y.shape() != g.shape() || y.dtype() != g.dtype() {
        bail!("vjp::cotangent: `g` must be {:?} {:?} like `y`, got {:?} {:?}", y.dims(), y.dtype(), g.dims(), g.dtype())
    }
    let g = g.detach();
    record1("cotangent", [y], zero(y)?, move |_, _, _| Ok([Some(g.clone())]))
}
