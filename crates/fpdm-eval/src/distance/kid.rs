//! The kernel distance.

use candle_core::Tensor;
use fpdm_core::rng::{Stream, stream};
use fpdm_core::{Error, Result};
use rand::seq::index;

use super::rows::{Rows, products};

/// How the spread of the kernel distance is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KidSubsets {
    /// How many pairs of subsets are compared.
    pub count: usize,
    /// Features in a subset, at most so many as the smaller set has.
    pub size: usize,
    /// What the subsets are drawn with.
    pub seed: u64,
}

impl Default for KidSubsets {
    /// 100 subsets of 1000, as published.
    fn default() -> Self {
        Self { count: 100, size: 1000, seed: 0 }
    }
}

/// A kernel distance with its spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kid {
    /// The unbiased estimate from all features.
    pub value: f64,
    /// The mean over subsets.
    pub mean: f64,
    /// The standard deviation over subsets; 0 for a single one.
    pub std: f64,
    /// Features in each subset.
    pub size: usize,
}

/// The squared maximum mean discrepancy of two sets of features `(N, D)` and `(M, D)` with the kernel
/// `(x·y/D + 1)³`, unbiased: it is 0 on average for sets of one distribution, and may be negative.
///
/// # Errors
/// [`Error::Shape`] for fewer than two rows or other widths, [`Error::NonFinite`] if a feature is no number.
///
/// # Reference
///
/// Binkowski et al. 2018, arXiv 1801.01401.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fpdm_eval::kid_unbiased;
///
/// // One feature: kernels 1 within the first set, 27 within the second, 1 between.
/// let (a, b) = (Tensor::new(&[[0f64], [0.]], &Device::Cpu)?, Tensor::new(&[[1f64], [2.]], &Device::Cpu)?);
/// assert!((kid_unbiased(&a, &b)? - (1. + 27. - 2.)).abs() < 1e-12);
/// # fpdm_eval::Result::<()>::Ok(())
/// ```
pub fn kid_unbiased(a: &Tensor, b: &Tensor) -> Result<f64> {
    let (a, b) = checked(a, b)?;
    discrepancy(&a, &b)
}

/// [`kid_unbiased`] of all features, and its mean and spread over subsets of both sets.
///
/// Subsets are drawn without replacement, from streams that depend on the seed and the subset alone. The spread says how
/// far a distance of so many features can be trusted, not of all; where a set is not larger than a subset, it is always
/// the whole set.
///
/// # Errors
/// Those of [`kid_unbiased`]; [`Error::Config`] for no subsets, or subsets of fewer than two.
pub fn kid(a: &Tensor, b: &Tensor, subsets: KidSubsets) -> Result<Kid> {
    let (a, b) = checked(a, b)?;
    if subsets.count == 0 {
        return Err(Error::config("subsets", "0; give at least 1"));
    }
    if subsets.size < 2 {
        return Err(Error::config("subset size", format!("{}; give at least 2", subsets.size)));
    }
    let size = subsets.size.min(a.count).min(b.count);
    let mut values = Vec::with_capacity(subsets.count);
    for i in 0..subsets.count {
        let rng = &mut stream(subsets.seed, Stream::Data, i as u64);
        let mut draw = |rows: &Rows| -> Result<Rows> {
            let indices: Vec<u32> = index::sample(rng, rows.count, size).iter().map(|i| i as u32).collect();
            rows.select(&indices)
        };
        let (a, b) = (draw(&a)?, draw(&b)?);
        values.push(discrepancy(&a, &b)?);
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    Ok(Kid { value: discrepancy(&a, &b)?, mean, std: (squares / (n - 1.).max(1.)).sqrt(), size })
}

fn checked(a: &Tensor, b: &Tensor) -> Result<(Rows, Rows)> {
    let (a, b) = (Rows::new("kid: features", a, 2)?, Rows::new("kid: features", b, 2)?);
    a.like("kid", &b)?;
    Ok((a, b))
}

fn discrepancy(a: &Rows, b: &Rows) -> Result<f64> {
    let (n, m) = (a.count as f64, b.count as f64);
    let within_a = kernels(a, a, true)? / (n * (n - 1.));
    let within_b = kernels(b, b, true)? / (m * (m - 1.));
    Ok(within_a + within_b - 2. * kernels(a, b, false)? / (n * m))
}

/// The sum of the kernel over all pairs, without those of a row with itself if `others` says so.
fn kernels(a: &Rows, b: &Rows, others: bool) -> Result<f64> {
    let scale = 1. / a.width as f64;
    let kernel = |product: f64| {
        let x = product * scale + 1.;
        x * x * x
    };
    let mut sum = 0.;
    products(a, b, |i, row| {
        let own = if others { kernel(row[i]) } else { 0. };
        sum += row.iter().map(|product| kernel(*product)).sum::<f64>() - own;
    })?;
    Ok(sum)
}
