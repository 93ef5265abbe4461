//! What a network is trained to say.

use std::fmt;
use std::str::FromStr;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::schedule::combine;
use crate::{Error, Level, Result};

/// What a network predicts: `target = a·x0 + b·eps`, two numbers at every [`Level`].
///
/// | | `a` | `b` | splits `x` unless |
/// |---|---|---|---|
/// | `Eps` | 0 | 1 | `alpha = 0` |
/// | `X0` | 1 | 0 | `sigma = 0` |
/// | `V` | −sigma | alpha | |
/// | `Flow` | 1 | −1 | |
///
/// Together with `x = alpha·x0 + sigma·eps` a prediction is a 2×2 system for `x0` and `eps`, with determinant
/// `alpha·b − sigma·a`.
///
/// `Flow` points from noise to data, as the published trainer has it; much of the literature has the other sign.
///
/// # Reference
///
/// `Eps`: Ho, Jain and Abbeel 2020, arXiv 2006.11239, equation 14. `V`: Salimans and Ho 2022, arXiv 2202.00512,
/// section 4 and appendix D. `Flow`: Liu, Gong and Liu 2022, arXiv 2209.03003, equation 1.
///
/// # Shapes
///
/// Tensors `(B, ...)`; one level for all samples or one for each.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fpdm_core::{Level, Parameterization, diffuse};
///
/// // Pure noise: v says what x0 is although x does not know.
/// let level = [Level { t: 999., alpha: 0., sigma: 1. }];
/// let x0 = Tensor::new(&[3f64], &Device::Cpu)?;
/// let eps = Tensor::new(&[-1f64], &Device::Cpu)?;
/// let x = diffuse(&level, &x0, &eps)?;
/// let v = Parameterization::V.target(&level, &x0, &eps)?;
/// let (x0, eps) = Parameterization::V.split(&level, &x, &v)?;
/// assert_eq!((x0.to_vec1::<f64>()?[0], eps.to_vec1::<f64>()?[0]), (3., -1.));
/// assert!(Parameterization::Eps.split(&level, &x, &eps).is_err());
/// # fpdm_core::Result::<()>::Ok(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Parameterization {
    /// The noise.
    Eps,
    /// The clean latent.
    X0,
    /// The velocity on the circle, `alpha·eps − sigma·x0`.
    V,
    /// The velocity on the straight path, `x0 − eps`.
    Flow,
}

impl Parameterization {
    /// `(a, b)` in `target = a·x0 + b·eps`.
    pub fn coefficients(self, level: Level) -> (f64, f64) {
        match self {
            Self::Eps => (0., 1.),
            Self::X0 => (1., 0.),
            Self::V => (-level.sigma, level.alpha),
            Self::Flow => (1., -1.),
        }
    }

    /// What the network should say about `x0` and `eps`.
    pub fn target(self, levels: &[Level], x0: &Tensor, eps: &Tensor) -> Result<Tensor> {
        combine(levels.iter().map(|&l| self.coefficients(l)), x0, eps)
    }

    /// `(x0, eps)` from the noisy latent `x` and the network's `prediction`.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] at a level where the prediction leaves one of the two open (the table above).
    pub fn split(self, levels: &[Level], x: &Tensor, prediction: &Tensor) -> Result<(Tensor, Tensor)> {
        let inverse = levels.iter().map(|&l| self.inverse(l)).collect::<Result<Vec<_>>>()?;
        let x0 = combine(inverse.iter().map(|m| m[0]), x, prediction)?;
        let eps = combine(inverse.iter().map(|m| m[1]), x, prediction)?;
        Ok((x0, eps))
    }

    /// The factors of `x` and of the prediction in `x0`, then in `eps`.
    fn inverse(self, level: Level) -> Result<[(f64, f64); 2]> {
        let (Level { alpha, sigma, .. }, (a, b)) = (level, self.coefficients(level));
        let det = alpha * b - sigma * a;
        if det == 0. || !det.is_finite() {
            let why = format!("`{self}` does not determine x0 and eps at {level:?}; use `v`, or leave this level out");
            return Err(Error::config("parameterization", why));
        }
        Ok([(b / det, -sigma / det), (-a / det, alpha / det)])
    }
}

impl fmt::Display for Parameterization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eps => "eps",
            Self::X0 => "x0",
            Self::V => "v",
            Self::Flow => "flow",
        })
    }
}

impl FromStr for Parameterization {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        [Self::Eps, Self::X0, Self::V, Self::Flow]
            .into_iter()
            .find(|p| p.to_string() == name)
            .ok_or_else(|| Error::config("parameterization", format!("`{name}` is none of eps, x0, v, flow")))
    }
}
