//! At which of the trained times a sampler works.

use std::fmt;
use std::str::FromStr;

use fpdm_core::{Error, Result};

/// How a few times are chosen out of the `n` of training.
///
/// | | first and last of 5 of 1000 | pure noise reached |
/// |---|---|---|
/// | `Published` | 999 … 0 | yes |
/// | `Leading` | 800 … 0 | no |
/// | `Trailing` | 999 … 199 | yes |
///
/// # Reference
///
/// `Published`: the code of Bai and Melas-Kyriazi 2024, which takes it from Nichol and Dhariwal 2021. The others: Lin,
/// Liu, Li and Yang 2023, arXiv 2305.08891, Table 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Spacing {
    /// Both ends included, rounded half to even.
    #[default]
    Published,
    /// Whole strides from the clean end.
    Leading,
    /// Even strides from the noisy end.
    Trailing,
}

impl Spacing {
    /// Places on the grid `0 … n − 1`, from noise to data: whole numbers if `whole`.
    ///
    /// One `Published` step is taken at the noisy end; the published code would take it at the clean one.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for no steps or more than `n`.
    ///
    /// ```
    /// use fpdm_sample::Spacing;
    ///
    /// assert_eq!(Spacing::Published.places(1000, 5, true)?, [999., 749., 500., 250., 0.]);
    /// assert_eq!(Spacing::Leading.places(1000, 5, true)?, [800., 600., 400., 200., 0.]);
    /// assert_eq!(Spacing::Trailing.places(1000, 5, true)?, [999., 799., 599., 399., 199.]);
    /// # fpdm_core::Result::<()>::Ok(())
    /// ```
    pub fn places(self, n: usize, steps: usize, whole: bool) -> Result<Vec<f64>> {
        if steps == 0 || steps > n {
            return Err(Error::config("steps", format!("{steps} is out of range; use 1 to {n}")));
        }
        let last = (n - 1) as f64;
        let round = |v: f64| if whole { v.round_ties_even() } else { v };
        Ok(match self {
            Self::Published if steps == 1 => vec![last],
            Self::Published => {
                let stride = last / (steps - 1) as f64;
                (0..steps).rev().map(|i| round(i as f64 * stride)).collect()
            }
            Self::Leading => (0..steps).rev().map(|i| (i * (n / steps)) as f64).collect(),
            Self::Trailing => {
                let stride = n as f64 / steps as f64;
                (0..steps).map(|i| round(n as f64 - i as f64 * stride) - 1.).collect()
            }
        })
    }
}

impl fmt::Display for Spacing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Published => "published",
            Self::Leading => "leading",
            Self::Trailing => "trailing",
        })
    }
}

impl FromStr for Spacing {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        [Self::Published, Self::Leading, Self::Trailing]
            .into_iter()
            .find(|s| s.to_string() == name)
            .ok_or_else(|| Error::config("spacing", format!("`{name}` is none of published, leading, trailing")))
    }
}
