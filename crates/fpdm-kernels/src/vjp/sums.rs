//! Gradients that are added up where they are made.

use candle_core::{DType, Result, Shape, Tensor, bail};

use super::unsupported;
use crate::dispatch::{Route, route};
use crate::linear;

/// The sum of the gradients of one weight over all its uses, at least in `f32`.
#[derive(Debug)]
pub struct WeightSum {
    pub(super) sum: Tensor,
}

impl WeightSum {
    /// Zero, for a weight (O, I) like `w`.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn new(w: &Tensor) -> Result<Self> {
        Self::shaped(w.shape(), w)
    }

    /// Zero, of any shape, in a type that is enough for gradients in that of `like`.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn shaped(shape: impl Into<Shape>, like: &Tensor) -> Result<Self> {
        let dtype = if like.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        Ok(Self { sum: Tensor::zeros(shape, dtype, like.device())? })
    }

    pub(super) fn fits(&self, dims: &[usize]) -> Result<()> {
        if self.sum.dims() != dims {
            bail!("WeightSum: a gradient {dims:?} does not fit {:?}", self.sum.dims())
        }
        Ok(())
    }

    pub(super) fn add(&mut self, g: &Tensor) -> Result<()> {
        self.sum = (&self.sum + g.to_dtype(self.sum.dtype())?)?;
        Ok(())
    }

    /// Adds `gᵀ x` to the columns from `column` on: `g` (.., O), `x` (.., I').
    ///
    /// # Errors
    /// If shapes do not fit, or there are no kernels.
    pub fn add_product(&mut self, g: &Tensor, x: &Tensor, column: usize) -> Result<()> {
        let (outer, inner) = self.sum.dims2()?;
        let (last, width) = (g.dims()[g.rank() - 1], x.dims()[x.rank() - 1]);
        if last != outer || column + width > inner {
            bail!("WeightSum: a product ({last}, {width}) at column {column} does not fit ({outer}, {inner})")
        }
        match route(g) {
            Route::Cpu => {
                let product = linear::weight_gradient(g, x)?;
                self.sum = match width == inner {
                    true => (&self.sum + product)?,
                    false => {
                        let all = self.sum.narrow(1, column, width)?;
                        self.sum.slice_assign(&[0..outer, column..column + width], &(all + product)?)?
                    }
                };
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Route::Cuda => crate::cuda::add_weight_gradient(&self.sum, g, x, column),
            _ => unsupported("WeightSum", g),
        }
    }

    /// Adds the sum of `g` (.., O) over all but the last dimension, for a bias (O).
    ///
    /// # Errors
    /// If shapes do not fit, or there are no kernels.
    pub fn add_rows(&mut self, g: &Tensor) -> Result<()> {
        self.fits(&[g.dims().last().copied().unwrap_or(0)])?;
        match route(g) {
            Route::Cpu => self.add(&linear::bias_gradient(g)?)?,
            #[cfg(feature = "cuda")]
            Route::Cuda => crate::cuda::add_rows(&self.sum, g)?,
            _ => return unsupported("WeightSum", g),
        }
        Ok(())
    }

    /// The sum.
    pub fn into_inner(self) -> Tensor {
        self.sum
    }
}

/// A sum of gradients of one tensor.
///
/// The first is taken over: on a GPU the rest is added where it lies, so that nothing else may hold its memory.
#[derive(Debug, Default)]
pub struct GradientSum {
    sum: Option<Tensor>,
}

impl GradientSum {
    /// Adds `g`, in the type of the first.
    ///
    /// # Errors
    /// If shapes do not fit, or there are no kernels.
    pub fn add(&mut self, g: Tensor) -> Result<()> {
        let g = g.detach();
        self.sum = Some(match self.sum.take() {
            None => g.contiguous()?,
            Some(sum) if sum.shape() != g.shape() => {
                bail!("GradientSum: {:?} does not fit {:?}", g.dims(), sum.dims())
            }
            Some(sum) => match route(&sum) {
                #[cfg(feature = "cuda")]
                Route::Cuda => {
                    match sum.dtype() == DType::F32 {
                        true => crate::cuda::add_into(&sum.flatten_all()?, 0, &g, 1., true)?,
                        false => crate::cuda::add(&sum, &g.to_dtype(sum.dtype())?)?,
                    }
                    sum
                }
                _ => (&sum + g.to_dtype(sum.dtype())?)?,
            },
        });
        Ok(())
    }

    /// The sum, if there was anything to add.
    pub fn into_inner(self) -> Option<Tensor> {
        self.sum
    }
}
