use fpdm_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// Which iterates the loss looks at: the last, or every one that a gradient can reach.
///
/// # Reference
/// Bai et al. 2022, arXiv 2204.08442, section 3.3, "sparse fixed point correction", equation 6, with `gamma` 0.8.
///
/// # Cost
/// The layers after the implicit part, forward and backward, once for each iterate that counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Supervision {
    /// The solution alone.
    #[default]
    Last,
    /// Iterate `j` of `m` counts `gammaᵐ⁻ʲ`, divided by the sum; 1 counts all alike.
    Discounted(
        /// In (0, 1].
        f64,
    ),
}

impl Supervision {
    /// What each of `m` iterates counts; the sum is 1.
    pub fn weights(self, m: usize) -> Result<Vec<f64>> {
        match self {
            Self::Last => Ok((1..=m).map(|j| if j == m { 1. } else { 0. }).collect()),
            Self::Discounted(gamma) if gamma > 0. && gamma <= 1. => {
                let powers: Vec<f64> = (1..=m).map(|j| gamma.powf((m - j) as f64)).collect();
                let sum: f64 = powers.iter().sum();
                Ok(powers.iter().map(|p| p / sum).collect())
            }
            Self::Discounted(gamma) => {
                Err(Error::config("supervision", format!("discount {gamma} is outside (0, 1]; use 0.8")))
            }
        }
    }
}
