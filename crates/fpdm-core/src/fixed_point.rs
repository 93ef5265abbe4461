//! The map `z = f(z)`, and what one application of it shows.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use crate::{Error, Result};

/// `f` in `z = f(z)`, already bound to its conditioning. Closures are maps.
///
/// # Shapes
///
/// `z` and `f(z)` have the same shape and dtype; dimension 0 counts samples where there are two dimensions or more.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fpdm_core::{FixedPointMap, Result};
///
/// // z = z/2 + 1 is solved by 2.
/// let f = |z: &Tensor| -> Result<Tensor> { Ok(z.affine(0.5, 1.)?) };
/// let z = Tensor::new(&[2f64], &Device::Cpu)?;
/// assert_eq!(f.apply(&z)?.to_vec1::<f64>()?, [2.]);
/// # Result::<()>::Ok(())
/// ```
pub trait FixedPointMap: Send + Sync {
    /// One application: `z` and `f(z)` have the same shape, `(B, T, D)` in the networks here.
    fn apply(&self, z: &Tensor) -> Result<Tensor>;

    /// `n` applications in a row, 1 at least: the last point that was evaluated, and its image.
    ///
    /// The default applies `n` times. A map that can do many at once without its host is free to.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] where an image cannot be a next point; whatever [`FixedPointMap::apply`] returns.
    fn repeat(&self, z: &Tensor, n: usize) -> Result<(Tensor, Tensor)> {
        let (mut point, mut image) = (z.clone(), self.apply(z)?);
        for _ in 1..n {
            check_image(&point, &image)?;
            let next = self.apply(&image)?;
            point = std::mem::replace(&mut image, next);
        }
        Ok((point, image))
    }

    /// The map of these samples alone, in this order; `None`, the default, for a map that cannot be cut.
    ///
    /// Where the samples of a batch end their solves one by one, this spares the work of those that have ended.
    fn rows(&self, _rows: &[usize]) -> Result<Option<Arc<dyn FixedPointMap>>> {
        Ok(None)
    }
}

impl<F> FixedPointMap for F
where
    F: Fn(&Tensor) -> Result<Tensor> + Send + Sync,
{
    fn apply(&self, z: &Tensor) -> Result<Tensor> {
        self(z)
    }
}

/// Refuses an image that cannot be a next point.
pub(crate) fn check_image(z: &Tensor, fz: &Tensor) -> Result<()> {
    if fz.shape() == z.shape() && fz.dtype() == z.dtype() {
        return Ok(());
    }
    Err(Error::shape("f(z): like its point `z`", (z.dims(), z.dtype()), (fz.dims(), fz.dtype())))
}

/// A map whose point and image are cut from the autograd graph, so that nothing outlives one application.
pub struct Detached(pub Arc<dyn FixedPointMap>);

impl FixedPointMap for Detached {
    fn apply(&self, z: &Tensor) -> Result<Tensor> {
        Ok(self.0.apply(&z.detach())?.detach())
    }

    fn rows(&self, rows: &[usize]) -> Result<Option<Arc<dyn FixedPointMap>>> {
        Ok(self.0.rows(rows)?.map(|map| Arc::new(Detached(map)) as Arc<dyn FixedPointMap>))
    }
}

/// One application of `f`: the point, its true image whatever the solver makes of it, and where the solver goes next.
///
/// Nothing is measured here, because measuring makes an accelerator wait: residuals are computed by whoever asks.
#[derive(Clone, Debug)]
pub struct Iterate {
    /// The point that was evaluated.
    pub z: Tensor,
    /// Its image under `f`.
    pub fz: Tensor,
    /// The solver's next point: after `n` applications, the `n`-th iterate. [`solve`](crate::solve) returns the last.
    pub next: Tensor,
}

/// How far a point is from its image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Residual {
    /// `‖f(z) − z‖₂`.
    pub abs: f64,
    /// `‖f(z) − z‖₂ / ‖f(z)‖₂`; 0 where the residual is 0, infinite where only the image is 0.
    pub rel: f64,
}

impl Residual {
    /// The residual of each sample from the values of [`Iterate::squares`].
    pub fn of_squares(squares: &[f64]) -> Vec<Self> {
        let (abs, image) = squares.split_at(squares.len() / 2);
        let of = |(a, f): (&f64, &f64)| Self { abs: a.sqrt(), rel: if *a == 0. { 0. } else { (a / f).sqrt() } };
        abs.iter().zip(image).map(of).collect()
    }

    /// The worst of several; `None` where one is no number.
    pub fn worst(all: &[Self]) -> Option<Self> {
        // `max` skips NaN, so it is looked for first.
        if all.iter().any(|r| !r.abs.is_finite() || r.rel.is_nan()) {
            return None;
        }
        let max = |of: fn(&Self) -> f64| all.iter().map(of).fold(0., f64::max);
        Some(Self { abs: max(|r| r.abs), rel: max(|r| r.rel) })
    }
}

impl Iterate {
    /// The residual of each sample: norms over all dimensions but the first, over all of them below rank 2.
    ///
    /// # Cost
    ///
    /// One reduction, in f32 or f64, and one synchronisation with the device.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use fpdm_core::Iterate;
    ///
    /// let z = Tensor::new(&[[3f64, 4.], [1., 1.]], &Device::Cpu)?;
    /// let fz = Tensor::new(&[[0f64, 8.], [1., 1.]], &Device::Cpu)?;
    /// let r = Iterate { z, next: fz.clone(), fz }.residuals()?;
    /// assert_eq!((r[0].abs, r[0].rel), (5., 0.625));
    /// assert_eq!((r[1].abs, r[1].rel), (0., 0.));
    /// # fpdm_core::Result::<()>::Ok(())
    /// ```
    pub fn residuals(&self) -> Result<Vec<Residual>> {
        Ok(Residual::of_squares(&host(&self.squares()?)?))
    }

    /// What the residuals are made of, `(2B)` in f32 or f64: `‖f(z) − z‖²` of every sample, then `‖f(z)‖²` of every
    /// sample.
    ///
    /// # Cost
    ///
    /// One reduction. Nothing waits for the device, so that a training loop can look at many steps at once.
    pub fn squares(&self) -> Result<Tensor> {
        Ok(fpdm_kernels::residual_squares(&rows(&self.z)?, &rows(&self.fz)?)?)
    }

    /// The worst sample's residual, or [`Error::NonFinite`] where a sample's is no number.
    ///
    /// `iter` counts the applications so far and goes into the error. Costs what [`Iterate::residuals`] costs.
    pub fn worst(&self, iter: usize) -> Result<Residual> {
        Residual::worst(&self.residuals()?)
            .ok_or_else(|| Error::NonFinite { at: "the residual f(z) − z".into(), iter })
    }
}

/// `z` as one row a sample, `(B, D)`, in f64 if it is f64 and in f32 otherwise: sums in half precision lose everything.
pub(crate) fn samples(z: &Tensor) -> Result<Tensor> {
    let rows = rows(z)?;
    Ok(if z.dtype() == DType::F64 { rows } else { rows.to_dtype(DType::F32)? })
}

fn rows(z: &Tensor) -> Result<Tensor> {
    Ok(if z.rank() < 2 { z.reshape((1, z.elem_count()))? } else { z.flatten_from(1)? })
}

/// All values on the host in f64. Not every device can convert to f64 itself.
pub(crate) fn host(t: &Tensor) -> Result<Vec<f64>> {
    let t = t.flatten_all()?;
    match t.dtype() {
        DType::F64 => Ok(t.to_vec1()?),
        _ => Ok(t.to_dtype(DType::F32)?.to_vec1::<f32>()?.into_iter().map(f64::from).collect()),
    }
}
