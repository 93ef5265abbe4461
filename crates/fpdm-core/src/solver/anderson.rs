use std::collections::VecDeque;

use candle_core::{DType, Tensor};

use super::{Iterates, Solver, iterates, refuse};
use crate::fixed_point::{host, samples};
use crate::{Error, FixedPointMap, Result};

/// Anderson acceleration, type II: the next point is a mix of the last ones, with weights that make the residual small.
///
/// With `r_n = f(z_n) − z_n` and the differences `ΔZ`, `ΔR` of the last points and residuals,
/// `γ = argmin ‖r_n − ΔR·γ‖² + λ‖D·γ‖²` and `z_{n+1} = z_n + β·r_n − (ΔZ + β·ΔR)·γ`, for every sample on its own.
/// `D` holds the column norms of `ΔR`, so `λ` has no unit. On an affine map this is GMRES.
///
/// To autograd the correction is a constant: a step differentiates as the damped Picard step `z_n + β·r_n`.
///
/// # Reference
///
/// Anderson 1965; Walker and Ni 2011, "Anderson acceleration for fixed-point iterations", equations 2.2 and 2.3 and
/// Algorithm AA; for networks Bai, Kolter and Koltun 2019, arXiv 1909.01377.
///
/// # Cost
///
/// One application an iterate; `2·memory` states in f32 (f64 for f64 maps); `memory²` inner products on the device, and
/// one synchronisation an iterate, because the small system is solved on the host in f64.
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
            let gamma = self.weights(&dr, &r1)?; // (B, 1, m)
            let correction = gamma.matmul(&(dz + (dr * self.mixing)?)?)?.squeeze(1)?; // (B, D)
            Ok((step - correction)?.reshape(z.shape())?.to_dtype(z.dtype())?)
        })
    }
}

impl Anderson {
    /// `γ` of every sample, `(B, 1, m)`, from `ΔR` `(B, m, D)` and `r` `(B, D)`.
    fn weights(&self, dr: &Tensor, r: &Tensor) -> Result<Tensor> {
        let (b, m, _) = dr.dims3()?;
        let with_r = Tensor::cat(&[dr, &r.unsqueeze(1)?], 1)?; // (B, m+1, D)
        let products = host(&dr.matmul(&with_r.transpose(1, 2)?)?)?; // (B, m, m+1)
        // Below this share of its own length, what a column adds to the ones before it is rounding.
        let noise = if dr.dtype() == DType::F64 { 1e-14 } else { 1e-6 };
        let gamma: Vec<f64> = products
            .chunks(m * (m + 1))
            .flat_map(|rows| normal_equations(rows, m, self.regularisation, noise))
            .collect();
        Ok(Tensor::from_vec(gamma, (b, 1, m), &candle_core::Device::Cpu)?
            .to_dtype(dr.dtype())?
            .to_device(dr.device())?)
    }
}

/// Solves `(G + λ·diag G)·γ = g` for rows `[G | g]` by Cholesky, leaving out columns that add nothing to newer ones.
fn normal_equations(rows: &[f64], m: usize, lambda: f64, noise: f64) -> Vec<f64> {
    let at = |i: usize, j: usize| rows[i * (m + 1) + j];
    // An infinite length or pivot is how a column is left out: whatever is divided by it is 0, and nothing is NaN.
    let some = |x: f64, least: f64| if x > least { x.sqrt() } else { f64::INFINITY };
    let length: Vec<f64> = (0..m).map(|i| some(at(i, i), 0.)).collect();
    let mut l = vec![0.; m * m];
    let mut x = vec![0.; m];
    for i in 0..m {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| l[i * m + k] * l[j * m + k]).sum();
            let entry = at(i, j) / length[i] / length[j] + if i == j { lambda } else { 0. } - sum;
            l[i * m + j] = if i == j { some(entry, noise) } else { entry / l[j * m + j] };
        }
        let sum: f64 = (0..i).map(|k| l[i * m + k] * x[k]).sum();
        x[i] = (at(i, m) / length[i] - sum) / l[i * m + i];
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
    use super::normal_equations;

    #[test]
    fn the_small_system_is_solved() {
        // G = [[4, 2], [2, 3]], g = (8, 8): γ = (1, 2).
        let gamma = normal_equations(&[4., 2., 8., 2., 3., 8.], 2, 0., 1e-14);
        assert!((gamma[0] - 1.).abs() < 1e-14 && (gamma[1] - 2.).abs() < 1e-14, "{gamma:?}");
    }

    #[test]
    fn zero_and_repeated_columns_are_left_out() {
        assert_eq!(normal_equations(&[0., 0.], 1, 0., 1e-14), [0.]);
        // The second column is twice the first.
        let gamma = normal_equations(&[1., 2., 3., 2., 4., 6.], 2, 0., 1e-14);
        assert!((gamma[0] - 3.).abs() < 1e-12 && gamma[1] == 0., "{gamma:?}");
        assert_eq!(normal_equations(&[f64::NAN, 1.], 1, 0., 1e-14), [0.]);
    }
}
