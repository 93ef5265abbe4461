//! Pictures at another size, as two products with matrices of weights.

use candle_core::{Device, Tensor};
use fpdm_core::{Error, Result};
use fpdm_kernels::linear;

/// The weight of a pixel by its distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Between the two nearest pixels, whatever the sizes: PyTorch's `interpolate` with `mode="bilinear"`.
    Bilinear,
    /// Keys 1981 with a = -0.5 over four pixels, over more when shrinking: Pillow's `BICUBIC`, and PyTorch's
    /// `interpolate` with `mode="bicubic", antialias=True`. Nothing is rounded or cut to the range.
    Bicubic,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Filter::Bilinear => 1.,
            Filter::Bicubic => 2.,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        match (self, x.abs()) {
            (Filter::Bilinear, x) => (1. - x).max(0.),
            (Filter::Bicubic, x) if x < 1. => ((A + 2.) * x - (A + 3.)) * x * x + 1.,
            (Filter::Bicubic, x) if x < 2. => (((x - 5.) * x + 8.) * x - 4.) * A,
            (Filter::Bicubic, _) => 0.,
        }
    }

    /// The weights of old pixels in new ones, `to` rows of `from`; each row sums to 1.
    fn matrix(self, from: usize, to: usize) -> Vec<f64> {
        let scale = from as f64 / to as f64;
        let wide = if self == Filter::Bicubic { scale.max(1.) } else { 1. };
        let mut matrix = vec![0.; from * to];
        for (i, row) in matrix.chunks_exact_mut(from).enumerate() {
            let mut center = (i as f64 + 0.5) * scale;
            if self == Filter::Bilinear {
                // Beyond the outermost centres there is only the outermost pixel.
                center = center.clamp(0.5, from as f64 - 0.5);
            }
            let reach = self.support() * wide;
            let first = (center - reach).floor().max(0.) as usize;
            let end = ((center + reach).ceil() as usize).min(from);
            for (x, weight) in row.iter_mut().enumerate().take(end).skip(first) {
                *weight = self.weight((x as f64 + 0.5 - center) / wide);
            }
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|weight| *weight /= sum);
        }
        matrix
    }
}

/// `(B, C, H, W)` → `(B, C, height, width)`. Differentiable.
///
/// # Errors
/// [`Error::Shape`] if `x` is no batch of pictures of floating point numbers, [`Error::Config`] for a size of 0.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use fpdm_eval::{Filter, resize};
///
/// let x = Tensor::ones((1, 3, 192, 192), DType::F32, &Device::Cpu)?;
/// assert_eq!(resize(&x, [224, 224], Filter::Bicubic)?.dims(), [1, 3, 224, 224]);
/// # fpdm_eval::Result::<()>::Ok(())
/// ```
pub fn resize(x: &Tensor, [height, width]: [usize; 2], filter: Filter) -> Result<Tensor> {
    let &[b, c, from_height, from_width] = x.dims() else {
        return Err(Error::shape("resize: (B, C, H, W)", "four dimensions", x.dims()));
    };
    if x.elem_count() == 0 || !x.dtype().is_float() {
        let got = format!("{:?} of {:?}", x.dims(), x.dtype());
        let expected = "pictures with pixels of floating point numbers".into();
        return Err(Error::Shape { what: "resize".into(), expected, got });
    }
    if height == 0 || width == 0 {
        return Err(Error::config("size", format!("{height}x{width}; give positive sides")));
    }
    let mut x = x.contiguous()?;
    if width != from_width {
        x = linear(&x, &matrix(filter, from_width, width, &x)?, None)?;
    }
    if height != from_height {
        let columns = x.transpose(2, 3)?.contiguous()?;
        x = linear(&columns, &matrix(filter, from_height, height, &x)?, None)?.transpose(2, 3)?.contiguous()?;
    }
    Ok(x.reshape((b, c, height, width))?)
}

fn matrix(filter: Filter, from: usize, to: usize, like: &Tensor) -> Result<Tensor> {
    let matrix = Tensor::from_vec(filter.matrix(from, to), (to, from), &Device::Cpu)?;
    Ok(matrix.to_dtype(like.dtype())?.to_device(like.device())?)
}
