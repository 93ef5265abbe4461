//! What distances between sets of features promise.

use candle_core::{DType, Device, Tensor};
use fpdm_core::rng::{self, Stream};
use fpdm_eval::{Gaussian, KidSubsets, Result, frechet_distance, kid, kid_unbiased, nearest, precision_recall};

/// Normal features around `mean`.
fn normal(seed: u64, n: usize, d: usize, mean: f64) -> Result<Tensor> {
    let mut stream = rng::stream(seed, Stream::Noise, 0);
    Ok((rng::normal((n, d), &mut stream, DType::F64, &Device::Cpu)? + mean)?)
}

#[test]
fn equal_distributions_are_near_and_others_far() -> Result<()> {
    let (a, b, c) = (normal(1, 800, 8, 0.)?, normal(2, 600, 8, 0.)?, normal(3, 600, 8, 0.5)?);
    let fd = |a: &Tensor, b: &Tensor| frechet_distance(&Gaussian::of(a)?, &Gaussian::of(b)?);
    // Means half apart in eight dimensions, covariances alike.
    assert!(fd(&a, &b)? < 0.1 && (fd(&a, &c)? - 2.).abs() < 0.4, "{} {}", fd(&a, &b)?, fd(&a, &c)?);
    let subsets = KidSubsets { count: 20, size: 100, seed: 0 };
    let (near, far) = (kid(&a, &b, subsets)?, kid(&a, &c, subsets)?);
    assert!(near.value.abs() < 0.02 && near.value.abs() < near.std && far.mean > 3. * near.std, "{near:?} {far:?}");
    let found = precision_recall(&a, &b, 3)?;
    assert!(found.precision > 0.8 && found.recall > 0.8, "{found:?}");
    let found = precision_recall(&a, &normal(4, 600, 8, 9.)?, 3)?;
    assert_eq!((found.precision, found.recall), (0., 0.));
    // Samples that have found one place are precise, and miss the rest.
    let found = precision_recall(&a, &(normal(5, 600, 8, 0.)? * 0.1)?, 3)?;
    assert!(found.precision > 0.99 && found.recall < 0.05, "{found:?}");
    Ok(())
}

/// Fewer samples than features: both covariances are singular.
#[test]
fn singular_covariances_are_no_trouble() -> Result<()> {
    let (a, b) = (normal(1, 20, 50, 0.)?, normal(2, 30, 50, 0.)?);
    let (a, b) = (Gaussian::of(&a)?, Gaussian::of(&b)?);
    let there = frechet_distance(&a, &b)?;
    assert!(there > 0. && (there - frechet_distance(&b, &a)?).abs() < 1e-5 * there);
    assert!(frechet_distance(&a, &a)?.abs() < 1e-5);
    Ok(())
}

/// More rows than one block of products has.
#[test]
fn blocks_equal_the_whole() -> Result<()> {
    let (a, b) = (normal(1, 5, 3, 0.)?, normal(2, 1_500_000, 3, 0.)?);
    let found = nearest(&a, &b, 2)?;
    let (a, b) = (a.to_vec2::<f64>()?, b.to_vec2::<f64>()?);
    for (query, found) in a.iter().zip(found) {
        let distance = |row: &[f64]| row.iter().zip(query).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt();
        let mut all: Vec<(f64, usize)> = b.iter().enumerate().map(|(i, row)| (distance(row), i)).collect();
        all.select_nth_unstable_by(1, |x, y| x.0.total_cmp(&y.0));
        let mut want = [all[0], all[1]];
        want.sort_by(|x, y| x.0.total_cmp(&y.0));
        assert_eq!([(found[0].distance, found[0].index), (found[1].distance, found[1].index)], want);
    }
    Ok(())
}

#[test]
fn a_copy_is_at_distance_0() -> Result<()> {
    // Far from the origin, where a difference of squares would have lost everything.
    let bank = (normal(1, 40, 16, 0.)? + 1e6)?;
    let found = nearest(&bank.narrow(0, 7, 1)?, &bank, 1)?;
    assert_eq!((found[0][0].index, found[0][0].distance), (7, 0.));
    Ok(())
}

#[test]
fn bad_sets_are_named() -> Result<()> {
    let (a, b) = (normal(1, 4, 3, 0.)?, normal(2, 4, 2, 0.)?);
    let gaussian = |t: &Tensor| Gaussian::of(t);
    assert!(gaussian(&a.narrow(0, 0, 1)?).unwrap_err().to_string().contains("at least 2"));
    assert!(gaussian(&a.flatten_all()?).unwrap_err().to_string().contains("(N, D)"));
    assert!(gaussian(&(&a * f64::NAN)?).unwrap_err().to_string().contains("not finite"));
    assert!(frechet_distance(&gaussian(&a)?, &gaussian(&b)?).unwrap_err().to_string().contains("both sets"));
    assert!(kid_unbiased(&a, &b).unwrap_err().to_string().contains("both sets"));
    for subsets in [KidSubsets { count: 0, size: 2, seed: 0 }, KidSubsets { count: 1, size: 1, seed: 0 }] {
        assert!(kid(&a, &a, subsets).unwrap_err().to_string().contains("subset"));
    }
    assert!(nearest(&a, &a, 5).unwrap_err().to_string().contains("1 to 4"));
    assert!(nearest(&a, &b, 1).is_err());
    assert!(precision_recall(&a, &a, 4).unwrap_err().to_string().contains("1 to 3"));
    Ok(())
}
