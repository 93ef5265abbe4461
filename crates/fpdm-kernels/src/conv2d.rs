//! Convolution of pictures, with its gradients as matrix products.

use crate::check::Check;
use crate::cpu::conv::Convolution;
use crate::cpu::conv_patch::{Geometry, Zoom};
use crate::cpu::conv_weight;
use crate::cpu::matrix::written;
use crate::cpu::parallel;
use crate::cpu::simd::Real;
use crate::dispatch::{Route, by_dtype, route};
use crate::record::{Fresh, record2, record3, wanted};
use candle_core::{DType, Result, Storage, Tensor, bail};

/// How a kernel meets a picture.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use fpdm_kernels::{Conv2d, conv2d};
///
/// let x = Tensor::ones((1, 2, 8, 8), DType::F32, &Device::Cpu)?;
/// let w = Tensor::ones((4, 2, 3, 3), DType::F32, &Device::Cpu)?;
/// let halve = Conv2d { stride: 2, before: 1, after: 1, ..Conv2d::default() };
/// assert_eq!(conv2d(&x, &w, None, None, halve)?.dims(), [1, 4, 4, 4]);
/// # candle_core::Result::Ok(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// Distance between neighbouring places of the kernel.
    pub stride: usize,
    /// Zeros above and to the left.
    pub before: usize,
    /// Zeros below and to the right.
    pub after: usize,
    /// The picture is first made so many times larger, by repeating pixels.
    pub upsample: usize,
    /// Negative results become 0.
    pub relu: bool,
    /// Results larger than this become it: 6 after `relu` is the ReLU6 of small networks.
    pub cap: Option<u8>,
}

impl Default for Conv2d {
    fn default() -> Self {
        Self { stride: 1, before: 0, after: 0, upsample: 1, relu: false, cap: None }
    }
}

impl Conv2d {
    pub(crate) fn out(&self, size: usize, kernel: usize) -> usize {
        (size * self.upsample + self.before + self.after - kernel) / self.stride + 1
    }
}

/// `min(relu(conv(upsample(x), w) + b + residual), cap)`, each part but the convolution as `how` and the arguments say.
///
/// `x` (B, I, H, W), `w` (O, I, K, L), `b` (O), `residual` like the result → (B, O, H', W'). Differentiable in all
/// arguments. On the CPU no matrix of patches is written down: a place of the kernel is an offset into a padded strip
/// of the picture, and bias, residual and ReLU are part of the same pass while nothing is tracked. On an NVIDIA GPU the same
/// holds for kernels of 3×3 in half precision, on tensor cores; other kernels and types are patches times a matrix.
///
/// # Errors
/// If shapes, types or devices do not fit, or the kernel is larger than the padded picture.
pub fn conv2d(x: &Tensor, w: &Tensor, b: Option<&Tensor>, residual: Option<&Tensor>, how: Conv2d) -> Result<Tensor> {
    check_arguments(x, w, b, residual, how)?;
    match route(x) {
        #[cfg(feature = "cuda")]
        Route::Cuda if !crate::cuda::pixels_fit(x.dims()[0], x.dims()[1].max(w.dims()[0])) => {
            composed(x, w, b, residual, how)
        }
        Route::Composed => composed(x, w, b, residual, how),
        Route::Widened => {
            let wide = |t: &Tensor| t.to_dtype(DType::F32);
            let (b, residual) = (b.map(wide).transpose()?, residual.map(wide).transpose()?);
            conv2d(&wide(x)?, &wide(w)?, b.as_ref(), residual.as_ref(), how)?.to_dtype(x.dtype())
        }
        _ => {
            let tracked = [Some(x), Some(w), b, residual].into_iter().flatten().any(Tensor::track_op);
            match residual {
                _ if !tracked => computed(x, w, b, residual, how)?.untracked(x),
                Some(residual) => {
                    let y = &conv2d(x, w, b, None, Conv2d { relu: false, cap: None, ..how })?;
                    // Not candle's ReLU and minimum, whose gradients pass where a result lies on the bound itself.
                    record2("conv2d", [y, residual], joined_by_kernels(y, residual, how)?, move |[a, b], y, g| {
                        let (g, _) = through(y, g, how, false)?;
                        Ok([wanted(a, || Ok(g.clone()))?, wanted(b, || Ok(g.clone()))?])
                    })
                }
                None => recorded(x, w, b, how),
            }
        }
    }
}

fn recorded(x: &Tensor, w: &Tensor, b: Option<&Tensor>, how: Conv2d) -> Result<Tensor> {
    let out = computed(x, w, b, None, how)?;
    let both = move |x: &Tensor, w: &Tensor, g: &Tensor| -> Result<_> {
        Ok((wanted(x, || of_picture(x, w, g, how))?, wanted(w, || of_kernel(x, w, g, how))?))
    };
    match b {
        None => record2("conv2d", [x, w], out, move |[x, w], y, g| {
            let (dx, dw) = both(x, w, &through(y, g, how, false)?.0)?;
            Ok([dx, dw])
        }),
        Some(b) => record3("conv2d", [x, w, b], out, move |[x, w, b], y, g| {
            let (g, db) = through(y, g, how, b.track_op())?;
            let (dx, dw) = both(x, w, &g)?;
            Ok([dx, dw, db])
        }),
    }
}

/// Gradients of a convolution outside any graph.
pub(crate) struct Gradients {
    /// At the sums, before the activation.
    pub(crate) sums: Tensor,
    pub(crate) x: Tensor,
    pub(crate) w: Tensor,
    pub(crate) b: Tensor,
}

/// All gradients for the gradient `g` of the result `y` of `x` and `w`, where there are kernels.
pub(crate) fn gradients(x: &Tensor, w: &Tensor, y: &Tensor, g: &Tensor, how: Conv2d) -> Result<Gradients> {
    let (sums, b) = through(y, g, how, true)?;
    let b = b.unwrap_or_else(|| unreachable!("asked for"));
    Ok(Gradients { x: of_picture(x, w, &sums, how)?, w: of_kernel(x, w, &sums, how)?, b, sums })
}

// What the kernels of the CPU and of a GPU are asked for.

#[cfg(feature = "cuda")]
fn on_gpu(x: &Tensor) -> bool {
    x.device().is_cuda()
}

fn computed(x: &Tensor, w: &Tensor, b: Option<&Tensor>, residual: Option<&Tensor>, how: Conv2d) -> Result<Fresh> {
    #[cfg(feature = "cuda")]
    if on_gpu(x) {
        return crate::cuda::conv2d(x, w, b, residual, how);
    }
    by_dtype!(x, forward(x, w, b, residual, how))
}

/// `min(relu(y + residual), cap)`.
fn joined_by_kernels(y: &Tensor, residual: &Tensor, how: Conv2d) -> Result<Fresh> {
    #[cfg(feature = "cuda")]
    if on_gpu(y) {
        return crate::cuda::joined(y, residual, how);
    }
    by_dtype!(y, joined(y, residual, how))
}

/// The gradient before the activation whose result is `y`, and that of the bias if it is asked for.
fn through(y: &Tensor, g: &Tensor, how: Conv2d, bias: bool) -> Result<(Tensor, Option<Tensor>)> {
    #[cfg(feature = "cuda")]
    if on_gpu(y) {
        return crate::cuda::through(y, g, how, bias);
    }
    let g = through_activation(y, g, how)?;
    let db = if bias { Some(by_dtype!(g, bias_gradient(&g))?) } else { None };
    Ok((g, db))
}

fn of_picture(x: &Tensor, w: &Tensor, g: &Tensor, how: Conv2d) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if on_gpu(x) {
        return crate::cuda::conv_input_gradient(x, w, g, how);
    }
    by_dtype!(x, input_gradient(x, w, g, how))
}

fn of_kernel(x: &Tensor, w: &Tensor, g: &Tensor, how: Conv2d) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if on_gpu(x) {
        return crate::cuda::conv_weight_gradient(x, w, g, how);
    }
    by_dtype!(x, weight_gradient(x, w, g, how))
}

/// [`conv2d`] in candle's operations.
///
/// # Errors
/// If candle cannot convolve or broadcast the arguments.
pub fn composed(x: &Tensor, w: &Tensor, b: Option<&Tensor>, residual: Option<&Tensor>, how: Conv2d) -> Result<Tensor> {
    let Conv2d { stride, before, after, upsample, .. } = how;
    let mut x = x.clone();
    if upsample > 1 {
        // Candle's own upsampling overwrites the gradient that another use of its argument left.
        let (b, c, h, w) = x.dims4()?;
        x = x.reshape((b, c, h, 1, w, 1))?.broadcast_as((b, c, h, upsample, w, upsample))?;
        x = x.reshape((b, c, h * upsample, w * upsample))?;
    }
    let padding = if before == after { before } else { 0 };
    if before != after {
        x = x.pad_with_zeros(2, before, after)?.pad_with_zeros(3, before, after)?;
    }
    // Both copies are for the GPU libraries, which know fewer strides than we allow.
    let mut y = x.contiguous()?.conv2d(&w.contiguous()?, padding, stride, 1, 1)?;
    if let Some(b) = b {
        y = y.broadcast_add(&b.reshape((1, b.elem_count(), 1, 1))?)?;
    }
    if let Some(residual) = residual {
        y = (y + residual)?;
    }
    activated(y, how)
}

/// What follows the sums, in candle's operations.
pub(crate) fn activated(y: Tensor, how: Conv2d) -> Result<Tensor> {
    let y = if how.relu { y.relu()? } else { y };
    match how.cap {
        Some(cap) => y.minimum(f64::from(cap)),
        None => Ok(y),
    }
}

fn check_arguments(x: &Tensor, w: &Tensor, b: Option<&Tensor>, residual: Option<&Tensor>, how: Conv2d) -> Result<()> {
    let check = Check::new("conv2d", "x", x)?;
    let &[batch, inputs, height, width] = x.dims() else {
        bail!("conv2d: `x` must have four dimensions (B, I, H, W), got {:?}", x.dims())
    };
    let &[outputs, _, kh, kw] = w.dims() else {
        bail!("conv2d: `w` must have four dimensions (O, I, K, L), got {:?}", w.dims())
    };
    check.shape("w", w, &[outputs, inputs, kh, kw])?;
    if how.stride == 0 || how.upsample == 0 || kh == 0 || kw == 0 {
        bail!("conv2d: stride, upsample and the sides of `w` must be positive, got {how:?} and {:?}", w.dims())
    }
    let padded = [height, width].map(|side| side * how.upsample + how.before + how.after);
    if padded[0] < kh || padded[1] < kw {
        bail!("conv2d: the kernel {kh}x{kw} is larger than the padded picture {}x{}", padded[0], padded[1])
    }
    if let Some(b) = b {
        check.shape("b", b, &[outputs])?;
    }
    if let Some(residual) = residual {
        check.shape("residual", residual, &[batch, outputs, how.out(height, kh), how.out(width, kw)])?;
    }
    Ok(())
}

/// Calls `f` with the elements of contiguous CPU tensors.
pub(crate) fn with<T: Real, R>(tensors: [Option<&Tensor>; 4], f: impl FnOnce([Option<&[T]>; 4]) -> R) -> Result<R> {
    let mut whole = [const { None }; 4];
    for (whole, t) in whole.iter_mut().zip(tensors) {
        *whole = t.map(Tensor::contiguous).transpose()?;
    }
    let held = [0, 1, 2, 3].map(|i| whole[i].as_ref().map(Tensor::storage_and_layout));
    let mut slices = [None; 4];
    for (slice, held) in slices.iter_mut().zip(&held) {
        let Some((storage, layout)) = held else { continue };
        let Storage::Cpu(cpu) = &**storage else { bail!("conv2d: a CPU kernel got a tensor of another device") };
        *slice = Some(&T::cpu_storage_as_slice(cpu)?[layout.start_offset()..][..layout.shape().elem_count()]);
    }
    Ok(f(slices))
}

fn geometry(x: &Tensor, w: &Tensor, how: Conv2d) -> Result<Geometry> {
    let (_, channels, height, width) = x.dims4()?;
    let (_, _, kh, kw) = w.dims4()?;
    Ok(Geometry {
        channels,
        size: [height, width],
        zoom: Zoom::Repeat(how.upsample),
        before: [how.before as isize; 2],
        kernel: [kh, kw],
        stride: how.stride,
        out: [how.out(height, kh), how.out(width, kw)],
    })
}

fn forward<T: Real>(
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    residual: Option<&Tensor>,
    how: Conv2d,
) -> Result<Fresh> {
    let geometry = geometry(x, w, how)?;
    let (batch, outputs, taps) = (x.dims()[0], w.dims()[0], geometry.taps());
    let shape = (batch, outputs, geometry.out[0], geometry.out[1]);
    let data = with([Some(x), Some(w), b, residual], |[x, w, bias, residual]| {
        let (x, w): (&[T], &[T]) = (x.unwrap_or_default(), w.unwrap_or_default());
        let weight = &|o, p| w[o * taps + p];
        let conv = Convolution {
            geometry,
            batch,
            x,
            weight,
            outputs,
            bias,
            residual,
            relu: how.relu,
            cap: how.cap.map(|c| T::from_f64(f64::from(c))),
        };
        unsafe { written(1, batch * outputs * geometry.out[0] * geometry.out[1], |out| conv.run(out)) }
    })?;
    Ok(Fresh::cpu(data, shape))
}

/// The convolution of the gradient, spread by the stride, with the turned kernel.
fn input_gradient<T: Real>(x: &Tensor, w: &Tensor, g: &Tensor, how: Conv2d) -> Result<Tensor> {
    let (batch, inputs, height, width) = x.dims4()?;
    let (channels, _, kh, kw) = w.dims4()?;
    let (_, _, gh, gw) = g.dims4()?;
    let geometry = Geometry {
        channels,
        size: [gh, gw],
        zoom: if how.stride == 1 { Zoom::Repeat(1) } else { Zoom::Spread(how.stride) },
        before: [kh, kw].map(|k| k as isize - 1 - how.before as isize),
        kernel: [kh, kw],
        stride: 1,
        out: [height * how.upsample, width * how.upsample],
    };
    let area = kh * kw;
    let large = with([Some(g), Some(w), None, None], |[g, w, ..]| {
        let (x, w): (&[T], &[T]) = (g.unwrap_or_default(), w.unwrap_or_default());
        let weight = &|i: usize, p: usize| w[(p / area * inputs + i) * area + area - 1 - p % area];
        let conv = Convolution {
            geometry,
            batch,
            x,
            weight,
            outputs: inputs,
            bias: None,
            residual: None,
            relu: false,
            cap: None,
        };
        unsafe { written(1, batch * inputs * geometry.out[0] * geometry.out[1], |out| conv.run(out)) }
    })?;
    let data = if how.upsample == 1 { large } else { pooled(&large, geometry.out[1], how.upsample) };
    Fresh::cpu(data, x.shape()).untracked(g)
}

/// The sum of every `n` by `n` pixels of pictures `width` wide.
fn pooled<T: Real>(large: &[T], width: usize, n: usize) -> Vec<T> {
    let mut small = vec![T::default(); large.len() / (n * n)];
    for (to, rows) in small.chunks_mut(width / n).zip(large.chunks(width * n)) {
        for row in rows.chunks(width) {
            for (to, pixels) in to.iter_mut().zip(row.chunks(n)) {
                for &pixel in pixels {
                    *to += pixel;
                }
            }
        }
    }
    small
}

fn weight_gradient<T: Real>(x: &Tensor, w: &Tensor, g: &Tensor, how: Conv2d) -> Result<Tensor> {
    let geometry = geometry(x, w, how)?;
    let (batch, outputs) = (x.dims()[0], w.dims()[0]);
    let data = with([Some(x), Some(g), None, None], |[x, g, ..]| {
        conv_weight::weight_gradient::<T>(geometry, x.unwrap_or_default(), g.unwrap_or_default(), batch, outputs)
    })?;
    Fresh::cpu(data, w.shape()).untracked(g)
}

fn bias_gradient<T: Real>(g: &Tensor) -> Result<Tensor> {
    let (_, outputs, height, width) = g.dims4()?;
    let data = with([Some(g), None, None, None], |[g, ..]| {
        conv_weight::bias_gradient::<T>(g.unwrap_or_default(), outputs, height * width)
    })?;
    Fresh::cpu(data, outputs).untracked(g)
}

/// `min(relu(y + residual), cap)`.
fn joined<T: Real>(y: &Tensor, residual: &Tensor, how: Conv2d) -> Result<Fresh> {
    let most = how.cap.map(|cap| T::from_f64(f64::from(cap)));
    let data = with([Some(y), Some(residual), None, None], |[a, b, ..]| {
        let (a, b): (&[T], &[T]) = (a.unwrap_or_default(), b.unwrap_or_default());
        unsafe {
            written(1, a.len(), |out| {
                parallel::rows(a.len(), 1, |range| {
                    let to = std::slice::from_raw_parts_mut(out.at(0, range.start), range.len());
                    for ((to, &a), &b) in to.iter_mut().zip(&a[range.clone()]).zip(&b[range]) {
                        let sum = a + b;
                        let sum = if how.relu && sum < T::default() { T::default() } else { sum };
                        *to = most.filter(|&most| sum > most).unwrap_or(sum);
                    }
                });
            })
        }
    })?;
    Ok(Fresh::cpu(data, y.shape()))
}

/// The gradient before the activation from the one behind it.
fn through_activation(y: &Tensor, g: &Tensor, how: Conv2d) -> Result<Tensor> {
    fn run<T: Real>(y: &Tensor, g: &Tensor, how: Conv2d) -> Result<Tensor> {
        let least = how.relu.then(T::default);
        let most = how.cap.map(|cap| T::from_f64(f64::from(cap)));
        let data = with([Some(y), Some(g), None, None], |[y, g, ..]| {
            let (y, g): (&[T], &[T]) = (y.unwrap_or_default(), g.unwrap_or_default());
            unsafe {
                written(1, y.len(), |out| {
                    parallel::rows(y.len(), 1, |range| {
                        let to = std::slice::from_raw_parts_mut(out.at(0, range.start), range.len());
                        for ((to, &y), &g) in to.iter_mut().zip(&y[range.clone()]).zip(&g[range]) {
                            let inside = least.is_none_or(|least| y > least) && most.is_none_or(|most| y < most);
                            *to = if inside { g } else { T::default() };
                        }
                    });
                })
            }
        })?;
        Fresh::cpu(data, y.shape()).untracked(g)
    }
    if how.relu || how.cap.is_some() { by_dtype!(y, run(y, g, how)) } else { Ok(g.clone()) }
}
