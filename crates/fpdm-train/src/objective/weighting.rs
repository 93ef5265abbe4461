use fpdm_core::{Error, Level, Parameterization, Result};
use serde::{Deserialize, Serialize};

/// How much the squared error counts at a noise level.
///
/// Written as factors of the squared error of `x0`, with `snr = alpha²/sigma²`; the loss is on what the network
/// predicts, so they are converted: an error `e` of the prediction is one of `sigma·e/(alpha·b − sigma·a)` in `x0`,
/// with `(a, b)` from [`Parameterization::coefficients`].
///
/// At `alpha = 0`, the last level of a schedule with zero terminal SNR, every weighting but [`Weighting::P2`] counts 1:
/// the step that such a schedule exists for is trained. The published training has P2, which is 0 there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// 1 on the prediction itself.
    #[default]
    Uniform,
    /// `snr / (k + snr)^gamma` (Choi et al. 2022, arXiv 2204.00227, equation 8). The published training has `k` 1 and
    /// `gamma` ½: on `v` that is `alpha²·sigma`.
    P2 {
        /// At least 0.
        k: f64,
        /// At least 0.
        gamma: f64,
    },
    /// `snr`: uniform on the noise (Salimans and Ho 2022, arXiv 2202.00512, section 4).
    Snr,
    /// `max(snr, 1)` (Salimans and Ho 2022, equation 13).
    TruncatedSnr,
    /// `min(snr, gamma)` (Hang et al. 2023, arXiv 2303.09556, section 3.4; they use 5).
    MinSnr(
        /// Above 0.
        f64,
    ),
}

impl Weighting {
    /// Refuses settings outside their ranges.
    pub fn check(self) -> Result<()> {
        match self {
            Self::P2 { k, gamma } if !(k >= 0. && gamma >= 0. && (k + gamma).is_finite()) => {
                Err(Error::config("weighting", format!("p2 with k {k} and gamma {gamma}: both must be 0 or more")))
            }
            Self::MinSnr(gamma) if !(gamma > 0. && gamma.is_finite()) => {
                Err(Error::config("weighting", format!("min_snr with gamma {gamma}: it must be above 0; use 5")))
            }
            _ => Ok(()),
        }
    }

    /// The factor of the squared error of a prediction at `level`.
    ///
    /// # Errors
    /// [`Error::Config`] where the prediction does not determine `x0`, unless the weighting is uniform.
    pub fn weight(self, level: Level, parameterization: Parameterization) -> Result<f64> {
        let Level { alpha, sigma, .. } = level;
        let (signal, noise) = (alpha * alpha, sigma * sigma);
        // The factor times sigma², which is finite where snr is not.
        let scaled = match self {
            Self::Uniform => return Ok(1.),
            Self::P2 { .. } if noise == 0. || signal == 0. => 0.,
            Self::P2 { k, gamma } => signal / (k + signal / noise).powf(gamma),
            _ if signal == 0. => return Ok(1.),
            Self::Snr => signal,
            Self::TruncatedSnr => signal.max(noise),
            Self::MinSnr(gamma) => signal.min(gamma * noise),
        };
        let (a, b) = parameterization.coefficients(level);
        let det = alpha * b - sigma * a;
        if scaled == 0. {
            return Ok(0.);
        }
        if det == 0. {
            let why =
                format!("{self:?} has no finite weight for `{parameterization}` at {level:?}; use uniform or `v`");
            return Err(Error::config("weighting", why));
        }
        Ok(scaled / (det * det))
    }
}
