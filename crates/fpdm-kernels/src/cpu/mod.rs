//! The fused CPU paths: vector types, packed matrix products and the row kernels built on them.

pub(crate) mod attention;
pub(crate) mod conv;
pub(crate) mod conv_patch;
mod conv_tile;
pub(crate) mod conv_weight;
pub(crate) mod depthwise;
pub(crate) mod epilogue;
pub(crate) mod gate;
pub(crate) mod gemm;
pub(crate) mod map;
pub(crate) mod math;
pub(crate) mod matrix;
pub(crate) mod norm;
mod pack;
pub(crate) mod parallel;
mod portable;
mod scratch;
pub(crate) mod simd;
pub(crate) mod softmax;
pub(crate) mod sums;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;
