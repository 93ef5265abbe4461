//! The distance of two normal distributions.

use candle_core::Tensor;
use fpdm_core::{Error, Result};
use nalgebra::{DMatrix, DVector, SymmetricEigen};

use super::rows::Rows;

/// Mean and covariance of a set of features, which is all that the Fréchet distance sees of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Gaussian {
    mean: DVector<f64>,
    covariance: DMatrix<f64>,
}

impl Gaussian {
    /// Of features `(N, D)`; the covariance is the unbiased one, over N - 1.
    ///
    /// # Errors
    /// [`Error::Shape`] for fewer than two rows, [`Error::NonFinite`] if a feature is no number.
    pub fn of(features: &Tensor) -> Result<Self> {
        let rows = Rows::new("Gaussian: features", features, 2)?;
        let mean = rows.tensor.mean_keepdim(0)?;
        let centred = rows.tensor.broadcast_sub(&mean)?;
        let covariance = (centred.t()?.contiguous()?.matmul(&centred)? / (rows.count - 1) as f64)?;
        let (mean, covariance) = (mean.flatten_all()?.to_vec1()?, covariance.flatten_all()?.to_vec1()?);
        Ok(Self {
            mean: DVector::from_vec(mean),
            covariance: symmetric(DMatrix::from_vec(rows.width, rows.width, covariance)),
        })
    }

    /// The number of features.
    pub fn width(&self) -> usize {
        self.mean.len()
    }
}

/// `|m1 - m2|² + tr(C1 + C2 - 2 sqrt(C1 C2))`, in f64.
///
/// The trace of the root is that of the roots of the eigenvalues of `sqrt(C1) C2 sqrt(C1)`, which is symmetric: no
/// complex root appears, and covariances of fewer samples than features need no regularisation.
///
/// # Errors
/// [`Error::Shape`] if the widths differ.
///
/// # Reference
///
/// Dowson and Landau 1982; with Inception's features, FID (Heusel et al. 2017, arXiv 1706.08500).
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fpdm_eval::{Gaussian, frechet_distance};
///
/// // Two sets of numbers with means 1 and 3, and variances 2 and 8.
/// let [a, b] = [[0f64, 2.], [1., 5.]].map(|x| Tensor::new(&x, &Device::Cpu).and_then(|x| x.reshape((2, 1))));
/// let distance = frechet_distance(&Gaussian::of(&a?)?, &Gaussian::of(&b?)?)?;
/// assert!((distance - (4. + 2. + 8. - 2. * 4.)).abs() < 1e-12);
/// # fpdm_eval::Result::<()>::Ok(())
/// ```
pub fn frechet_distance(a: &Gaussian, b: &Gaussian) -> Result<f64> {
    FrechetTo::new(a.clone()).distance(b)
}

/// The [`frechet_distance`] of many distributions to one: what depends on that one alone is computed once.
#[derive(Clone, Debug, PartialEq)]
pub struct FrechetTo {
    to: Gaussian,
    /// The root of its covariance.
    root: DMatrix<f64>,
}

impl FrechetTo {
    /// # Cost
    ///
    /// One eigenproblem of D features, with eigenvectors.
    pub fn new(to: Gaussian) -> Self {
        let SymmetricEigen { eigenvectors, eigenvalues } = SymmetricEigen::new(to.covariance.clone());
        // Eigenvalues below 0 are rounding.
        let mut scaled = eigenvectors.clone();
        for (mut column, value) in scaled.column_iter_mut().zip(eigenvalues.iter()) {
            column *= value.max(0.).sqrt();
        }
        let root = symmetric(scaled * eigenvectors.transpose());
        Self { to, root }
    }

    /// The distance of `other`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the widths differ.
    ///
    /// # Cost
    ///
    /// Two products and the eigenvalues of a matrix of D².
    pub fn distance(&self, other: &Gaussian) -> Result<f64> {
        let (a, b) = (&self.to, other);
        if a.width() != b.width() {
            return Err(Error::shape("frechet_distance: features of both sets", a.width(), b.width()));
        }
        let product = symmetric(&self.root * &b.covariance * &self.root);
        let cross: f64 = product.symmetric_eigenvalues().iter().map(|value| value.max(0.).sqrt()).sum();
        let means = (&a.mean - &b.mean).norm_squared();
        Ok(means + a.covariance.trace() + b.covariance.trace() - 2. * cross)
    }
}

/// Without what rounding has left of asymmetry.
fn symmetric(m: DMatrix<f64>) -> DMatrix<f64> {
    (&m + m.transpose()) * 0.5
}
