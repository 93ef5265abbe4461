//! How much of each set lies where the other is.

use candle_core::Tensor;
use fpdm_core::{Error, Result};

use super::neighbours::smallest;
use super::rows::{Rows, squared_distances};

/// Quality and variety, apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrecisionRecall {
    /// The share of samples that lie among the real ones.
    pub precision: f64,
    /// The share of the real ones that lie among the samples.
    pub recall: f64,
}

/// Precision and recall of `samples` `(N, D)` against `real` `(M, D)`: a feature lies among a set if it is no farther
/// from one of its members than that one's `k`-th nearest other member. 3 is usual.
///
/// Both depend on the sizes of the sets: compare numbers of equal sizes.
///
/// # Errors
/// [`Error::Shape`] for other widths, [`Error::Config`] if `k` is 0 or a set has not more than `k` rows,
/// [`Error::NonFinite`] if a feature is no number.
///
/// # Reference
///
/// Kynkäänniemi et al. 2019, arXiv 1904.06991.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fpdm_eval::precision_recall;
///
/// let real = Tensor::new(&[[0f32], [1.], [2.], [10.], [11.], [12.]], &Device::Cpu)?;
/// let samples = Tensor::new(&[[0.5f32], [1.5], [2.5], [30.], [31.]], &Device::Cpu)?;
/// let found = precision_recall(&real, &samples, 1)?;
/// assert_eq!((found.precision, found.recall), (0.6, 0.5));
/// # fpdm_eval::Result::<()>::Ok(())
/// ```
pub fn precision_recall(real: &Tensor, samples: &Tensor, k: usize) -> Result<PrecisionRecall> {
    let real = Rows::new("precision_recall: real", real, 1)?;
    let samples = Rows::new("precision_recall: samples", samples, 1)?;
    real.like("precision_recall", &samples)?;
    let least = real.count.min(samples.count);
    if k == 0 || k >= least {
        return Err(Error::config("k", format!("{k}; give 1 to {}, one less than the smaller set", least - 1)));
    }
    Ok(PrecisionRecall { precision: share(&samples, &real, k)?, recall: share(&real, &samples, k)? })
}

/// The share of `points` that lie among `set`.
fn share(points: &Rows, set: &Rows, k: usize) -> Result<f64> {
    let mut radii = Vec::with_capacity(set.count);
    squared_distances(set, set, |i, row| {
        radii.push(smallest(row, k, Some(i)).last().map_or(0., |&last| row[last]));
    })?;
    let mut inside = 0;
    squared_distances(points, set, |_, row| {
        inside += usize::from(row.iter().zip(&radii).any(|(distance, radius)| distance <= radius));
    })?;
    Ok(inside as f64 / points.count as f64)
}
