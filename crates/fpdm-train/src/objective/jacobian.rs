use candle_core::Tensor;
use fpdm_core::{Error, FixedPointMap, Result, rng};
use rand::RngCore;
use serde::{Deserialize, Serialize};

/// `weight·‖∂f/∂z‖²_F / d` at the solution, `d` its elements, estimated with one random direction (Hutchinson).
///
/// `‖J‖²_F = E‖J·v‖²` for standard normal `v`. The product is a central difference, `(f(z + h·v) − f(z − h·v)) / 2h`,
/// whose gradient needs one backward pass where the literature's `vᵀJ` needs two, which Candle does not offer. The
/// point `z` is held fixed.
///
/// # Reference
/// Bai, Koltun and Kolter 2021, arXiv 2106.14342, equation 4; Hutchinson 1989.
///
/// # Cost
/// Two applications in a graph. In bf16 the difference is lost in rounding: use f32.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JacobianPenalty {
    /// What it counts beside the loss, above 0.
    pub weight: f64,
    /// The step `h`, above 0, in units of `z`.
    pub step: f64,
}

impl Default for JacobianPenalty {
    /// Weight 1, step 0.01.
    fn default() -> Self {
        Self { weight: 1., step: 1e-2 }
    }
}

impl JacobianPenalty {
    /// The penalty of `f` at `z`, a scalar whose graph leads to the weights.
    pub fn loss(&self, f: &dyn FixedPointMap, z: &Tensor, rng: &mut dyn RngCore) -> Result<Tensor> {
        for (field, value) in [("jacobian.weight", self.weight), ("jacobian.step", self.step)] {
            if !(value > 0. && value.is_finite()) {
                return Err(Error::config(field, format!("{value} must be above 0")));
            }
        }
        let z = z.detach();
        let v = (rng::normal(z.shape(), rng, z.dtype(), z.device())? * self.step)?;
        let difference = (f.apply(&(&z + &v)?)? - f.apply(&(&z - &v)?)?)?;
        let product = (difference / (2. * self.step))?;
        Ok((product.sqr()?.mean_all()? * self.weight)?)
    }
}
