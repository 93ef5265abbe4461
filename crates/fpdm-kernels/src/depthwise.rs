//! Convolution of pictures with one kernel a channel.

use crate::check::Check;
use crate::conv2d::{Conv2d, activated, with};
use crate::cpu::conv_patch::{Geometry, Zoom};
use crate::cpu::depthwise::Depthwise;
use crate::cpu::matrix::written;
use crate::cpu::simd::Real;
use crate::dispatch::{Route, by_dtype, route};
use crate::record::Fresh;
use candle_core::{DType, Result, Tensor, bail};

/// `min(relu(conv(x, w) + b), cap)`, each channel with a kernel of its own.
///
/// `x` (B, C, H, W), `w` (C, 1, K, L), `b` (C) → (B, C, H', W'). Differentiable in all arguments, but fast only while
/// nothing is tracked: then the CPU and NVIDIA GPUs have a kernel, otherwise and elsewhere the result is composed.
///
/// # Errors
/// If shapes, types or devices do not fit, the kernel is larger than the padded picture, or `how` asks for upsampling.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use fpdm_kernels::{Conv2d, depthwise_conv2d};
///
/// let x = Tensor::ones((1, 2, 8, 8), DType::F32, &Device::Cpu)?;
/// let w = Tensor::ones((2, 1, 3, 3), DType::F32, &Device::Cpu)?;
/// let how = Conv2d { stride: 2, after: 1, relu: true, cap: Some(6), ..Conv2d::default() };
/// let y = depthwise_conv2d(&x, &w, None, how)?;
/// assert_eq!(y.dims(), [1, 2, 4, 4]);
/// assert_eq!(y.max_all()?.to_scalar::<f32>()?, 6.);
/// # candle_core::Result::Ok(())
/// ```
pub fn depthwise_conv2d(x: &Tensor, w: &Tensor, b: Option<&Tensor>, how: Conv2d) -> Result<Tensor> {
    check_arguments(x, w, b, how)?;
    match route(x) {
        _ if [Some(x), Some(w), b].into_iter().flatten().any(Tensor::track_op) => composed(x, w, b, how),
        #[cfg(feature = "cuda")]
        Route::Cuda if crate::cuda::pixels_fit(x.dims()[0], x.dims()[1]) => crate::cuda::depthwise_conv2d(x, w, b, how),
        #[cfg(feature = "cuda")]
        Route::Cuda => composed(x, w, b, how),
        Route::Composed => composed(x, w, b, how),
        Route::Widened => {
            let wide = |t: &Tensor| t.to_dtype(DType::F32);
            let b = b.map(wide).transpose()?;
            depthwise_conv2d(&wide(x)?, &wide(w)?, b.as_ref(), how)?.to_dtype(x.dtype())
        }
        Route::Cpu => by_dtype!(x, forward(x, w, b, how))?.untracked(x),
    }
}

/// [`depthwise_conv2d`] in candle's operations: a sum over the places of the kernel, each a shifted view of the picture
/// times a number a channel. Candle's own grouped convolution is one convolution a channel.
///
/// # Errors
/// If candle cannot pad, multiply or broadcast the arguments.
pub fn composed(x: &Tensor, w: &Tensor, b: Option<&Tensor>, how: Conv2d) -> Result<Tensor> {
    let Conv2d { stride, before, after, .. } = how;
    let (batch, channels, height, width) = x.dims4()?;
    let (_, _, kh, kw) = w.dims4()?;
    let (out_h, out_w) = (how.out(height, kh), how.out(width, kw));
    // Rows and columns in runs of `stride`: a place of the kernel is a place of a run and a distance in runs.
    let (runs_h, runs_w) = (out_h + (kh - 1) / stride, out_w + (kw - 1) / stride);
    let fit = |x: Tensor, dim: usize, len: usize| -> Result<Tensor> {
        let x = x.pad_with_zeros(dim, before, after)?;
        let have = x.dims()[dim];
        if have < len { x.pad_with_zeros(dim, 0, len - have) } else { x.narrow(dim, 0, len) }
    };
    let x = fit(fit(x.clone(), 2, runs_h * stride)?, 3, runs_w * stride)?.contiguous()?;
    let x = x.reshape(&[batch, channels, runs_h, stride, runs_w, stride])?;
    let mut sum: Option<Tensor> = None;
    for i in 0..kh {
        for j in 0..kw {
            let seen = x.narrow(2, i / stride, out_h)?.narrow(3, i % stride, 1)?;
            let seen = seen.narrow(4, j / stride, out_w)?.narrow(5, j % stride, 1)?;
            let seen = seen.contiguous()?.reshape((batch, channels, out_h, out_w))?;
            let weight = w.narrow(2, i, 1)?.narrow(3, j, 1)?.contiguous()?.reshape((1, channels, 1, 1))?;
            let term = seen.broadcast_mul(&weight)?;
            sum = Some(match sum {
                Some(sum) => (sum + term)?,
                None => term,
            });
        }
    }
    let Some(mut y) = sum else { bail!("depthwise_conv2d: `w` has no places, got {:?}", w.dims()) };
    if let Some(b) = b {
        y = y.broadcast_add(&b.reshape((1, channels, 1, 1))?)?;
    }
    activated(y, how)
}

fn check_arguments(x: &Tensor, w: &Tensor, b: Option<&Tensor>, how: Conv2d) -> Result<()> {
    let check = Check::new("depthwise_conv2d", "x", x)?;
    let &[_, channels, height, width] = x.dims() else {
        bail!("depthwise_conv2d: `x` must have four dimensions (B, C, H, W), got {:?}", x.dims())
    };
    let &[_, _, kh, kw] = w.dims() else {
        bail!("depthwise_conv2d: `w` must have four dimensions (C, 1, K, L), got {:?}", w.dims())
    };
    check.shape("w", w, &[channels, 1, kh, kw])?;
    if how.stride == 0 || kh == 0 || kw == 0 {
        bail!("depthwise_conv2d: stride and the sides of `w` must be positive, got {how:?} and {:?}", w.dims())
    }
    if how.upsample != 1 {
        bail!("depthwise_conv2d: upsample must be 1, got {}; upsample before", how.upsample)
    }
    let padded = [height, width].map(|side| side + how.before + how.after);
    if padded[0] < kh || padded[1] < kw {
        bail!("depthwise_conv2d: the kernel {kh}x{kw} is larger than the padded picture {}x{}", padded[0], padded[1])
    }
    match b {
        Some(b) => check.shape("b", b, &[channels]),
        None => Ok(()),
    }
}

fn forward<T: Real>(x: &Tensor, w: &Tensor, b: Option<&Tensor>, how: Conv2d) -> Result<Fresh> {
    let (batch, channels, height, width) = x.dims4()?;
    let (_, _, kh, kw) = w.dims4()?;
    let geometry = Geometry {
        channels: 1,
        size: [height, width],
        zoom: Zoom::Repeat(1),
        before: [how.before as isize; 2],
        kernel: [kh, kw],
        stride: how.stride,
        out: [how.out(height, kh), how.out(width, kw)],
    };
    let shape = (batch, channels, geometry.out[0], geometry.out[1]);
    let cap = how.cap.map(|cap| T::from_f64(f64::from(cap)));
    let data = with([Some(x), Some(w), b, None], |[x, weights, bias, _]| {
        let (x, weights): (&[T], &[T]) = (x.unwrap_or_default(), weights.unwrap_or_default());
        let conv = Depthwise { geometry, channels, x, weights, bias, relu: how.relu, cap };
        unsafe { written(1, batch * channels * geometry.out[0] * geometry.out[1], |out| conv.run(out)) }
    })?;
    Ok(Fresh::cpu(data, shape))
}
