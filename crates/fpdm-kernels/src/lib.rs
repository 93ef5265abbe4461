//! Fused, differentiable tensor operations for diffusion transformers on Candle.
//!
//! A transformer block in candle's own operations spends much of its time between the matrix products: every bias,
//! activation, modulation and residual is a pass over memory, some of the obvious layers cut the gradient without a
//! word, and the gradients of biases are slow sums. Here each of these is part of the product next to it, or one pass
//! of its own, forward and backward.
//!
//! | operation | result |
//! |---|---|
//! | [`linear`] | `x wᵀ + b` |
//! | [`linear_gelu`] | `gelu(x wᵀ + b)` |
//! | [`linear_add_gelu`] | `gelu(x wᵀ + r)`, `r` of full size |
//! | [`linear_gate_residual`] | `residual + gate (x wᵀ + b)` |
//! | [`linear_gate_residual_norm`] | the same, and its modulated norm |
//! | [`attention`] | `softmax(q kᵀ / sqrt(d)) v` from packed projections |
//! | [`layer_norm_modulate`] | `norm(x) (1 + scale) + shift` |
//! | [`gate_residual`] | `x + gate y` |
//! | [`conv2d`] | `min(relu(conv(x, w) + b + r), cap)`, with strides and upsampling |
//! | [`depthwise_conv2d`] | the same with one kernel a channel |
//! | [`group_moments`], [`channel_affine`] | what group normalisation is made of |
//! | [`residual_squares`] | how far points are from their images |
//! | [`lookup`] | rows of a table |
//! | [`waves`] | cosines and sines of times |
//! | [`gelu`], [`silu`], [`softmax`], [`bias`] | as their names say |
//!
//! Shapes: B samples, T tokens, D width, I and O the inner and outer width of a weight (O, I).
//!
//! # Should you be using it?
//!
//! Yes, if you write a transformer on candle and need gradients, or speed on a CPU or an NVIDIA GPU. `f32` and `f64`
//! have native kernels for AVX-512, AVX2 and, portably, everything else; `f16` and `bf16` are computed in `f32`. With
//! the feature `cuda`, NVIDIA GPUs have kernels for `f32`, `f16` and `bf16`.
//! Everywhere else the operations are [`composed`] of candle's own: the same results and gradients, no speed.
//! Derivatives of derivatives are not supported.
//!
//! # Example
//!
//! ```
//! use candle_core::{DType, Device, Tensor, Var};
//!
//! let device = Device::Cpu;
//! let x = Tensor::arange(0f32, 1024., &device)?.sin()?.reshape((2, 16, 32))?;
//! let w = Var::from_tensor(&(Tensor::arange(0f32, 2048., &device)?.cos()? * 0.1)?.reshape((64, 32))?)?;
//! let b = Var::zeros(64, DType::F32, &device)?;
//!
//! let y = fpdm_kernels::linear_gelu(&x, &w, Some(&b))?; // (2, 16, 64)
//! let reference = fpdm_kernels::composed::linear_gelu(&x, &w, Some(&b))?;
//! let error = (&y - reference)?.abs()?.max_all()?.to_scalar::<f32>()?;
//! assert!(error < 1e-5);
//!
//! let gradients = y.sum_all()?.backward()?;
//! assert_eq!(gradients.get(&w).unwrap().dims(), [64, 32]);
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! # Laws
//!
//! The fused form of an operation equals its composed form within the rounding of its type, in the result and in every
//! gradient. Every tracked argument gets a gradient. Bad arguments are errors that name the operation, the argument
//! and what was expected.
#![warn(missing_docs)]
// The workspace's only crate with unsafe code: vector instructions, and buffers shared by threads.
#![allow(unsafe_code)]

mod attention;
mod bias;
mod check;
mod conv2d;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod depthwise;
mod dispatch;
mod elementwise;
mod gate_residual;
mod gelu;
mod group_moments;
mod layer_norm_modulate;
mod linear;
mod linear_add_gelu;
mod linear_gate_residual;
mod linear_gate_residual_norm;
mod linear_gelu;
mod lookup;
mod memory;
mod record;
mod residual_squares;
mod silu;
mod softmax;
pub mod vjp;
mod waves;

pub use attention::attention;
pub use bias::bias;
pub use conv2d::{Conv2d, conv2d};
pub use depthwise::depthwise_conv2d;
pub use gate_residual::gate_residual;
pub use gelu::gelu;
pub use group_moments::{channel_affine, group_moments};
pub use layer_norm_modulate::layer_norm_modulate;
pub use linear::linear;
pub use linear_add_gelu::linear_add_gelu;
pub use linear_gate_residual::linear_gate_residual;
pub use linear_gate_residual_norm::linear_gate_residual_norm;
pub use linear_gelu::linear_gelu;
pub use lookup::lookup;
pub use memory::keep_freed_memory;
pub use residual_squares::residual_squares;
pub use silu::silu;
pub use softmax::softmax;
pub use waves::waves;

/// The same operations in candle's own: the definition that the fused ones are tested against, and what runs on
/// devices without kernels here. Arguments are only checked by candle.
pub mod composed {
    pub use crate::attention::composed as attention;
    pub use crate::bias::composed as bias;
    pub use crate::conv2d::composed as conv2d;
    pub use crate::depthwise::composed as depthwise_conv2d;
    pub use crate::gate_residual::composed as gate_residual;
    pub use crate::gelu::composed as gelu;
    pub use crate::group_moments::{composed_affine as channel_affine, composed_moments as group_moments};
    pub use crate::layer_norm_modulate::composed as layer_norm_modulate;
    pub use crate::linear::composed as linear;
    pub use crate::linear_add_gelu::composed as linear_add_gelu;
    pub use crate::linear_gate_residual::composed as linear_gate_residual;
    pub use crate::linear_gate_residual_norm::composed as linear_gate_residual_norm;
    pub use crate::linear_gelu::composed as linear_gelu;
    pub use crate::lookup::composed as lookup;
    pub use crate::residual_squares::composed as residual_squares;
    pub use crate::silu::composed as silu;
    pub use crate::softmax::composed as softmax;
    pub use crate::waves::composed as waves;
}
