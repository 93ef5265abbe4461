//! Distances between sets of features against stored numbers.
//!
//! `FPDM_PARITY_DIR` names a folder with a `manifest.json` (default: `tests/fixtures`) whose cases of kind `distances`
//! are run.

#[allow(dead_code, reason = "networks' cases have more to read than numbers")]
mod reference;

use fpdm_eval::{Gaussian, KidSubsets, frechet_distance, kid, kid_unbiased};
use reference::cases;

const TOLERANCE: f64 = 1e-8;

#[test]
fn distances() -> fpdm_eval::Result<()> {
    for case in cases("distances") {
        let (a, b) = (case.get("a"), case.get("b"));
        let (of_a, of_b) = (Gaussian::of(&a)?, Gaussian::of(&b)?);
        for (name, got) in [
            ("frechet", frechet_distance(&of_a, &of_b)?),
            ("frechet", frechet_distance(&of_b, &of_a)?),
            ("frechet_self", frechet_distance(&of_a, &of_a)?),
            ("kid_unbiased_poly3", kid_unbiased(&a, &b)?),
            ("kid_unbiased_poly3", kid(&b, &a, KidSubsets { count: 1, size: 2, seed: 0 })?.value),
        ] {
            let error = (got - case.numbers(name)[0]).abs();
            println!("parity {} {name} {error:.2e}", case.name);
            assert!(error <= TOLERANCE, "{} {name}: {got}, off by {error:.2e}", case.name);
        }
        // Subsets as large as the smaller set hold all of it, and some of the other.
        let spread = kid(&a, &b, KidSubsets { count: 8, size: 450, seed: 1 })?;
        assert!(spread.std > 0. && (spread.mean - spread.value).abs() < 4. * spread.std, "{spread:?}");
        assert_eq!(spread, kid(&a, &b, KidSubsets { count: 8, size: 450, seed: 1 })?);
        assert_ne!(spread.mean, kid(&a, &b, KidSubsets { count: 8, size: 450, seed: 2 })?.mean);
    }
    Ok(())
}
