//! The kernel distance.

use candle_core::{Device, Tensor};
use fpdm_core::rng::{Stream, stream};
use fpdm_core::{Error, Result};
use rand::seq::index;

use super::rows::{Rows, blocks};

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
    let found = discrepancies(&a, &b, &Parts::all(a.count)?, &Parts::all(b.count)?)?;
    Ok(found[0])
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
    let (mut of_a, mut of_b) = (Vec::with_capacity(subsets.count), Vec::with_capacity(subsets.count));
    for i in 0..subsets.count {
        let rng = &mut stream(subsets.seed, Stream::Data, i as u64);
        of_a.push(index::sample(rng, a.count, size).into_vec());
        of_b.push(index::sample(rng, b.count, size).into_vec());
    }
    let mut values = discrepancies(&a, &b, &Parts::new(a.count, &of_a)?, &Parts::new(b.count, &of_b)?)?;
    let value = values.pop().unwrap_or_default();
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    Ok(Kid { value, mean, std: (squares / (n - 1.).max(1.)).sqrt(), size })
}

fn checked(a: &Tensor, b: &Tensor) -> Result<(Rows, Rows)> {
    let (a, b) = (Rows::new("kid: features", a, 2)?, Rows::new("kid: features", b, 2)?);
    a.like("kid", &b)?;
    Ok((a, b))
}

/// Subsets of the rows of a set, and all of them as the last part.
struct Parts {
    /// 1 where a row is in a part, `(N, parts)`.
    members: Tensor,
    /// Rows of each part.
    sizes: Vec<f64>,
}

impl Parts {
    fn new(rows: usize, subsets: &[Vec<usize>]) -> Result<Self> {
        let parts = subsets.len() + 1;
        let mut members = vec![0f64; rows * parts];
        members.iter_mut().skip(parts - 1).step_by(parts).for_each(|last| *last = 1.);
        for (part, subset) in subsets.iter().enumerate() {
            subset.iter().for_each(|&row| members[row * parts + part] = 1.);
        }
        let mut sizes: Vec<f64> = subsets.iter().map(|subset| subset.len() as f64).collect();
        sizes.push(rows as f64);
        Ok(Self { members: Tensor::from_vec(members, (rows, parts), &Device::Cpu)?, sizes })
    }

    fn all(rows: usize) -> Result<Self> {
        Self::new(rows, &[])
    }
}

/// The unbiased estimate from each pair of parts.
fn discrepancies(a: &Rows, b: &Rows, of_a: &Parts, of_b: &Parts) -> Result<Vec<f64>> {
    let within_a = kernels((a, of_a), (a, of_a), true)?;
    let within_b = kernels((b, of_b), (b, of_b), true)?;
    let between = kernels((a, of_a), (b, of_b), false)?;
    let one = |i: usize| {
        let (n, m) = (of_a.sizes[i], of_b.sizes[i]);
        within_a[i] / (n * (n - 1.)) + within_b[i] / (m * (m - 1.)) - 2. * between[i] / (n * m)
    };
    Ok((0..between.len()).map(one).collect())
}

/// The sum of the kernel over all pairs of each part, without those of a row with itself if `others` says so.
///
/// Every kernel is computed once, however many parts it is in: the sums are products with the members.
fn kernels((a, of_a): (&Rows, &Parts), (b, of_b): (&Rows, &Parts), others: bool) -> Result<Vec<f64>> {
    let scale = 1. / a.width as f64;
    let mut sums = vec![0.; of_a.sizes.len()];
    blocks(a, b, |start, mut block| {
        for (i, row) in block.chunks_exact_mut(b.count).enumerate() {
            for product in row.iter_mut() {
                let x = *product * scale + 1.;
                *product = x * x * x;
            }
            if others {
                row[start + i] = 0.;
            }
        }
        let rows = block.len() / b.count;
        let of_rows = Tensor::from_vec(block, (rows, b.count), &Device::Cpu)?.matmul(&of_b.members)?;
        let found = (of_rows * of_a.members.narrow(0, start, rows)?)?.sum(0)?.to_vec1::<f64>()?;
        sums.iter_mut().zip(found).for_each(|(sum, more)| *sum += more);
        Ok(())
    })?;
    Ok(sums)
}
