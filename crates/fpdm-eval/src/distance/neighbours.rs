//! The nearest features.

use candle_core::Tensor;
use fpdm_core::{Error, Result};

use super::rows::{Rows, squared_distances};

/// A row of the bank that is near a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// Its place in the bank.
    pub index: usize,
    /// The Euclidean distance.
    pub distance: f64,
}

/// The `k` nearest rows of `bank` `(M, D)` to each row of `queries` `(N, D)`, from the nearest on; of equally near ones
/// the first. Exact: every pair is compared, in blocks, and the distances of those found are computed once more from
/// the differences, so that a copy is at distance 0.
///
/// # Errors
/// [`Error::Shape`] for empty sets or other widths, [`Error::Config`] if `k` is 0 or the bank has fewer rows,
/// [`Error::NonFinite`] if a feature is no number.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fpdm_eval::nearest;
///
/// let bank = Tensor::new(&[[0f32, 0.], [3., 4.], [0., 1.]], &Device::Cpu)?;
/// let found = nearest(&Tensor::new(&[[0f32, 0.]], &Device::Cpu)?, &bank, 3)?;
/// let found: Vec<_> = found[0].iter().map(|n| (n.index, n.distance)).collect();
/// assert_eq!(found, [(0, 0.), (2, 1.), (1, 5.)]);
/// # fpdm_eval::Result::<()>::Ok(())
/// ```
pub fn nearest(queries: &Tensor, bank: &Tensor, k: usize) -> Result<Vec<Vec<Neighbour>>> {
    let (queries, bank) = (Rows::new("nearest: queries", queries, 1)?, Rows::new("nearest: bank", bank, 1)?);
    queries.like("nearest", &bank)?;
    if k == 0 || k > bank.count {
        return Err(Error::config("k", format!("{k}; give 1 to {}, the size of the bank", bank.count)));
    }
    let mut found = Vec::with_capacity(queries.count);
    squared_distances(&queries, &bank, |_, row| found.push(smallest(row, k, None)))?;
    let (a, b, d) = (queries.numbers()?, bank.numbers()?, bank.width);
    let exact = |(query, found): (usize, Vec<usize>)| {
        let distance = |index: usize| {
            let pairs = a[query * d..][..d].iter().zip(&b[index * d..][..d]);
            pairs.map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
        };
        let mut found: Vec<_> = found.into_iter().map(|index| Neighbour { index, distance: distance(index) }).collect();
        found.sort_by(|a, b| a.distance.total_cmp(&b.distance).then(a.index.cmp(&b.index)));
        found
    };
    Ok(found.into_iter().enumerate().map(exact).collect())
}

/// The places of the `k` smallest numbers but the one at `without`, sorted.
pub(super) fn smallest(row: &[f64], k: usize, without: Option<usize>) -> Vec<usize> {
    let mut best: Vec<usize> = Vec::with_capacity(k + 1);
    for (i, &x) in row.iter().enumerate() {
        if Some(i) == without || (best.len() == k && best.last().is_some_and(|&last| row[last] <= x)) {
            continue;
        }
        best.insert(best.partition_point(|&j| row[j] <= x), i);
        best.truncate(k);
    }
    best
}
