use std::collections::VecDeque;

use candle_core::{DType, Device, Tensor};

use super::{Iterates, Solver, iterates, refuse};
use crate::fixed_point::{host, samples};
use crate::{Error, FixedPointMap, Result};

/// Anderson acceleration, type II: the next point is a mix of the last ones, with weights that make the residual small.
///
/// With `r_n = f(z_n) − z_n` and the differences `ΔZ`, `ΔR` of the last points and residuals,
/// `γ = argmin ‖r_n − ΔR·γ‖² + λ‖D·γ‖²` and `z_{n+1} = z_n + β·r_n − (ΔZ + β·ΔR)·γ`, for every sample on its own.
/// `D` holds the column norms of `ΔR`, so `λ` has no unit. On an affine map, with memory to spare, this
/// is GMRES.
///
/// To autograd the correction is a constant: a step differentiates as the damped Picard step `z_n + β·r_n`.
///
/// # Reference
///
/// Anderson 1965; Walker and Ni 2011, "Anderson acceleration for fixed-point iterations", Algorithm AA, which has the
/// same minimum over weights that sum to 1; for networks Bai, Kolter and Koltun 2020, arXiv 2006.08656.
///
/// # Cost
///
/// One application an iterate; `2·memory` states in f32 (f64 for f64 maps) and six passes over them; one synchronisation
/// an iterate, because the small system is solved on the host in f64.
///
/// # Shapes
///
/// `(B, ...)`, one system a sample; below rank 2 the whole tensor is one sample.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use fpdm_core::{Anderson, Budget, Result, solve};
///
/// // A map that barely contracts, in one dimension: two applications find the line, the third is on the point.
/// let f = |z: &Tensor| -> Result<Tensor> { Ok(z.affine(0.999, 1.)?) };
/// let z0 = Tensor::zeros(1, DType::F64, &Device::Cpu)?;
/// let found = solve(&Anderson::default(), &f, z0, &mut Budget(3))?;
/// assert!((found.z.to_vec1::<f64>()?[0] - 1000.).abs() < 1e-6);
/// # Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Anderson {
    /// Differences that are kept; 0 is damped Picard.
    pub memory: usize,
    /// `λ`, relative to the columns of `ΔR`.
    pub regularisation: f64,
    /// `β`, the share of the residual that is added; 1 is no damping.
    pub mixing: f64,
}

impl Default for Anderson {
    fn default() -> Self {
        Self { memory: 5, regularisation: 1e-10, mixing: 1. }
    }
}

impl Anderson {
    fn check(&self) -> Result<()> {
        if !(self.regularisation >= 0. && self.regularisation.is_finite()) {
            let why = format!("{} is no weight; use 0 or a small number such as 1e-10", self.regularisation);
            return Err(Error::config("Anderson.regularisation", why));
        }
        if !(self.mixing > 0. && self.mixing <= 1.) {
            return Err(Error::config("Anderson.mixing", format!("{} is outside (0, 1]; 1 is none", self.mixing)));
        }
        Ok(())
    }
}

impl Solver for Anderson {
    fn iterate<'a>(&'a self, f: &'a dyn FixedPointMap, z0: Tensor) -> Iterates<'a> {
        if let Err(error) = self.check() {
            return refuse(error);
        }
        let mut last: Option<(Tensor, Tensor)> = None;
        let (mut dz, mut dr) = (VecDeque::new(), VecDeque::new()); // newest first, (B, D) each
        let mut dots = VecDeque::new(); // with ΔR_j, j ≥ i: of ΔR_i, and of the residual that came with it
        iterates(f, z0, move |z, fz| {
            let (point, image) = (samples(z)?, samples(fz)?);
            let step = (&point + ((&image - &point)? * self.mixing)?)?;
            let (z1, r1) = (point.detach(), (&image - &point)?.detach());
            if let Some((z0, r0)) = last.replace((z1.clone(), r1.clone())) {
                dz.push_front((z1 - z0)?);
                dr.push_front((&r1 - r0)?);
                dz.truncate(self.memory);
                dr.truncate(self.memory);
            }
            if dr.is_empty() {
                return Ok(step.reshape(z.shape())?.to_dtype(z.dtype())?);
            }
            let dr = Tensor::stack(dr.make_contiguous(), 1)?; // (B, m, D)
            let dz = Tensor::stack(dz.make_contiguous(), 1)?;
            dots.push_front(products(&dr, [&dr.get_on_dim(1, 0)?, &r1])?);
            dots.truncate(self.memory);
            let (b, m, _) = dr.dims3()?;
            // Below this share of its own length, what a column adds to the ones before it is rounding.
            let noise = if dr.dtype() == DType::F64 { 1e-14 } else { 1e-6 };
            let gamma = (0..b).flat_map(|b| {
                let g: Vec<f64> = dots[0][b].iter().map(|dot| dot[1]).collect();
                least_squares(|i, j| dots[i][b][j - i][0], &g, self.regularisation, noise)
            });
            let gamma = Tensor::from_iter(gamma, &Device::Cpu)?.reshape((b, 1, m))?;
            let gamma = gamma.to_dtype(dr.dtype())?.to_device(dr.device())?;
            let correction = gamma.matmul(&(dz + (dr * self.mixing)?)?)?.squeeze(1)?; // (B, D)
            Ok((step - correction)?.reshape(z.shape())?.to_dtype(z.dtype())?)
        })
    }
}

/// The inner products of two `x` `(B, D)` with the columns `(B, m, D)`, by sample and column, in one transfer.
fn products(columns: &Tensor, x: [&Tensor; 2]) -> Result<Vec<Vec<[f64; 2]>>> {
    let dot = |x: &Tensor| columns.matmul(&x.unsqueeze(2)?.contiguous()?); // (B, m, 1)
    let flat = host(&Tensor::cat(&[dot(x[0])?, dot(x[1])?], 2)?)?;
    let by_sample = flat.chunks(2 * columns.dims()[1]);
    Ok(by_sample.map(|dots| dots.chunks(2).map(|dot| [dot[0], dot[1]]).collect()).collect())
}

/// Solves `(G + λ·diag G)·γ = g` by Cholesky, leaving out columns that add nothing to newer ones. `gram(i, j)`, `i ≤ j`.
fn least_squares(gram: impl Fn(usize, usize) -> f64, g: &[f64], lambda: f64, noise: f64) -> Vec<f64> {
    let m = g.len();
    // An infinite length or pivot is how a column is left out: whatever is divided by it is 0, and nothing is NaN.
    let some = |x: f64, least: f64| if x > least { x.sqrt() } else { f64::INFINITY };
    let length: Vec<f64> = (0..m).map(|i| some(gram(i, i), 0.)).collect();
    let mut l = vec![0.; m * m];
    let mut x = vec![0.; m];
    for i in 0..m {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| l[i * m + k] * l[j * m + k]).sum();
            let entry = gram(j, i) / length[i] / length[j] + if i == j { lambda } else { 0. } - sum;
            l[i * m + j] = if i == j { some(entry, noise) } else { entry / l[j * m + j] };
        }
        let sum: f64 = (0..i).map(|k| l[i * m + k] * x[k]).sum();
        x[i] = (g[i] / length[i] - sum) / l[i * m + i];
    }
    for i in (0..m).rev() {
        let sum: f64 = (i + 1..m).map(|k| l[k * m + i] * x[k]).sum();
        x[i] = (x[i] - sum) / l[i * m + i];
    }
    let gamma: Vec<f64> = x.iter().zip(&length).map(|(x, length)| x / length).collect();
    if gamma.iter().all(|g| g.is_finite()) { gamma } else { vec![0.; m] }
}

#[cfg(test)]
mod tests {
    use super::least_squares;

    fn solved(gram: &[&[f64]], g: &[f64]) -> Vec<f64> {
        least_squares(|i, j| gram[i][j], g, 0., 1e-14)
    }

    #[test]
    fn the_small_system_is_solved() {
        // G = [[4, 2], [2, 3]], g = (8, 8): γ = (1, 2).
        let gamma = solved(&[&[4., 2.], &[2., 3.]], &[8., 8.]);
        assert!((gamma[0] - 1.).abs() < 1e-14 && (gamma[1] - 2.).abs() < 1e-14, "{gamma:?}");
    }

    #[test]
    fn zero_and_repeated_columns_are_left_out() {
        assert_eq!(solved(&[&[0.]], &[0.]), [0.]);
        // The second column is twice the first.
        let gamma = solved(&[&[1., 2.], &[2., 4.]], &[3., 6.]);
        assert!((gamma[0] - 3.).abs() < 1e-12 && gamma[1] == 0., "{gamma:?}");
        assert_eq!(solved(&[&[f64::NAN]], &[1.]), [0.]);
    }
}
