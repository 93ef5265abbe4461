//! The operations on NVIDIA GPUs: own kernels, compiled at first use, and matrix products by cuBLASLt.
//!
//! `*.cu` are the sources; their first comments say how each kernel is launched.

mod adamw;
mod attention;
mod compile;
mod conv;
mod conv_hopper;
mod convert;
mod device;
mod flat;
mod gpu;
mod graph;
mod linear;
mod lt;
mod map;
mod norm;
mod pixels;
mod rows;
mod sums;
mod waves;

pub(crate) use attention::{attention, attention_gradient, attention_with_sums, fits as attention_fits};
pub(crate) use conv::{conv2d, input_gradient as conv_input_gradient, weight_gradient as conv_weight_gradient};
pub(crate) use linear::{
    add_weight_gradient, input_gradient, linear, linear_add_gelu, linear_gate_residual, linear_gate_residual_norm,
    linear_gelu, linear_gelu_with_argument,
};
pub(crate) use map::{add, bias, gate_residual, gelu, silu};
pub(crate) use norm::{fits as row_fits, gate_residual_norm, layer_norm_modulate, norm_gradients, softmax};
pub(crate) use pixels::{affine, depthwise_conv2d, fits as pixels_fit, joined, moments, through};
pub(crate) use rows::zero;
pub(crate) use sums::{LOOKUPS, add_rows, gate_gradients, gelu_gradient, lookup, residual_squares};
pub(crate) use waves::{fits as waves_fit, waves};

pub use adamw::{Adamw, adamw, norm};
pub use device::{Cuda, Tf32, cuda, peak_bytes, reset_peak};
pub use flat::{add_into, copy_from};
pub use graph::{Graph, recordable};
