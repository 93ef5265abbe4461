use std::fmt;
use std::str::FromStr;

use candle_core::Tensor;
use fpdm_core::{Error, Result};

/// Where a solve starts.
///
/// # Reference
///
/// `Reuse`: Bai and Melas-Kyriazi 2024, arXiv 2401.08741, section 3.3. `Blend`: Miele et al., arXiv 2605.31215.
/// `Extrapolate`: first order of Liu et al. 2025, arXiv 2503.06923.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum WarmStart {
    /// Where the network proposes, after its pre-layers.
    #[default]
    Fresh,
    /// At the last solution.
    Reuse,
    /// Between the two: `keep` of the last solution, the rest of the network's proposal.
    Blend {
        /// In [0, 1].
        keep: f64,
    },
    /// On the line through the last two solutions, at the new time.
    Extrapolate,
}

impl WarmStart {
    /// Refuses a blend outside [0, 1].
    ///
    /// # Errors
    ///
    /// [`Error::Config`].
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Blend { keep } if !(0. ..=1.).contains(keep) => {
                Err(Error::config("reuse", format!("blend:{keep} is outside [0, 1]; use blend:0.5")))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for WarmStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fresh => f.write_str("fresh"),
            Self::Reuse => f.write_str("reuse"),
            Self::Blend { keep } => write!(f, "blend:{keep}"),
            Self::Extrapolate => f.write_str("extrapolate"),
        }
    }
}

impl FromStr for WarmStart {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let start = match name.split_once(':') {
            None if name == "blend" => Some(Self::Blend { keep: 0.5 }),
            None => [Self::Fresh, Self::Reuse, Self::Extrapolate].into_iter().find(|s| s.to_string() == name),
            Some(("blend", keep)) => keep.parse().ok().map(|keep| Self::Blend { keep }),
            Some(_) => None,
        };
        let start = start.ok_or_else(|| {
            Error::config("reuse", format!("`{name}` is none of fresh, reuse, blend, blend:0.5, extrapolate"))
        })?;
        start.check()?;
        Ok(start)
    }
}

/// The last solutions of one trajectory, at distinct times.
#[derive(Default)]
pub(super) struct Memory {
    last: Option<(f64, Tensor)>,
    before: Option<(f64, Tensor)>,
}

impl Memory {
    /// Where to start at time `t`, if the network proposes `fresh`.
    pub(super) fn start(&self, warm: WarmStart, t: f64, fresh: &Tensor) -> Result<Tensor> {
        let Some((t1, z1)) = self.last.as_ref().filter(|(_, z)| z.shape() == fresh.shape()) else {
            return Ok(fresh.clone());
        };
        match (warm, &self.before) {
            (WarmStart::Fresh, _) => Ok(fresh.clone()),
            (WarmStart::Blend { keep }, _) => Ok(((z1 * keep)? + (fresh * (1. - keep))?)?),
            (WarmStart::Extrapolate, Some((t0, z0))) if *t1 != t => Ok((z1 + ((z1 - z0)? * ((t - t1) / (t1 - t0)))?)?),
            _ => Ok(z1.clone()),
        }
    }

    pub(super) fn last(&self) -> Option<&Tensor> {
        self.last.as_ref().map(|(_, z)| z)
    }

    pub(super) fn keep(&mut self, t: f64, z: Tensor) {
        match &mut self.last {
            // The same time again, as in Heun's second stage: the newer solution replaces the older.
            Some((at, last)) if *at == t => *last = z,
            last => self.before = last.replace((t, z)),
        }
    }
}
