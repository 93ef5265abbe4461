use candle_core::Tensor;

use super::{Iterates, Solver, iterates, refuse};
use crate::{Error, FixedPointMap, Iterate, Result};

/// Fixed point iteration, `z_{n+1} = (1 − damp)·f(z_n) + damp·z_n`.
///
/// Converges at the rate of the map's contraction `L` without damping. Damping also tames maps whose derivative has
/// eigenvalues below −1, at the price of a slower rate elsewhere.
///
/// # Reference
///
/// Picard 1890, Banach 1922; as the solver of a diffusion model: Bai and Melas-Kyriazi 2024, arXiv 2401.08741, section
/// 3.2.
/// Damping: Krasnosel'skii 1955, Mann 1953.
///
/// # Cost
///
/// One application an iterate, no memory, no synchronisation.
///
/// # Shapes
///
/// Any.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use fpdm_core::{Budget, Picard, Result, solve};
///
/// // z = 2 − 1.5·z is solved by 0.8: plain iteration diverges, a damped one halves the error and more.
/// let f = |z: &Tensor| -> Result<Tensor> { Ok(z.affine(-1.5, 2.)?) };
/// let z0 = Tensor::zeros(1, DType::F64, &Device::Cpu)?;
/// let found = solve(&Picard { damp: 0.5 }, &f, z0, &mut Budget(20))?;
/// assert!((found.z.to_vec1::<f64>()?[0] - 0.8).abs() < 1e-9);
/// # Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Picard {
    /// The share of the old point that is kept, in [0, 1); 0 is plain iteration.
    pub damp: f64,
}

impl Picard {
    fn check(&self) -> Result<()> {
        if (0. ..1.).contains(&self.damp) {
            return Ok(());
        }
        Err(Error::config("Picard.damp", format!("{} is outside [0, 1); 0 is no damping", self.damp)))
    }
}

impl Solver for Picard {
    fn iterate<'a>(&'a self, f: &'a dyn FixedPointMap, z0: Tensor) -> Iterates<'a> {
        if let Err(error) = self.check() {
            return refuse(error);
        }
        iterates(f, z0, |z, fz| match self.damp {
            0. => Ok(fz.clone()),
            damp => Ok(((fz * (1. - damp))? + (z * damp)?)?),
        })
    }

    fn leap(&self, f: &dyn FixedPointMap, z: &Tensor, n: usize) -> Option<Result<Iterate>> {
        let plain = self.damp == 0.;
        plain.then(|| f.repeat(z, n).map(|(z, fz)| Iterate { z, next: fz.clone(), fz }))
    }
}
