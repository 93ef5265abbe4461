use fpdm_core::{Error, Result};

use super::ledger::progress;
use super::ramp::by_plan;
use super::{AllocationPolicy, Ledger, apportion};

/// Weights at some places of progress `u`, linear between them and constant outside: one application each, the rest in
/// these proportions. Fits any number of solves and spends the total exactly.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    points: Vec<(f64, f64)>,
}

impl Curve {
    /// The curve through `(u, weight)`, by rising `u`.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for no point, a `u` outside [0, 1] or not rising, a negative weight, or all of them 0.
    pub fn new(points: Vec<(f64, f64)>) -> Result<Self> {
        let refuse = |why: String| Err(Error::config("allocation", why));
        if points.is_empty() {
            return refuse("a curve without points; give at least one `u weight`".into());
        }
        if let Some((u, w)) = points.iter().find(|(u, w)| !((0. ..=1.).contains(u) && *w >= 0. && w.is_finite())) {
            return refuse(format!("point `{u} {w}`; use u in [0, 1] and a weight of 0 or more"));
        }
        if let Some(pair) = points.windows(2).find(|pair| pair[1].0 <= pair[0].0) {
            return refuse(format!("u = {} after {}; let u rise from 0, noise, to 1", pair[1].0, pair[0].0));
        }
        if points.iter().all(|(_, w)| *w == 0.) {
            return refuse("all weights are 0; make one positive".into());
        }
        Ok(Self { points })
    }

    /// The weight at progress `u`.
    ///
    /// ```
    /// use fpdm_sample::Curve;
    ///
    /// let curve = Curve::new(vec![(0., 1.), (0.5, 3.)])?;
    /// assert_eq!((curve.weight(0.25), curve.weight(0.9)), (2., 3.));
    /// # fpdm_core::Result::<()>::Ok(())
    /// ```
    pub fn weight(&self, u: f64) -> f64 {
        let after = self.points.partition_point(|p| p.0 < u);
        match (after.checked_sub(1).map(|i| self.points[i]), self.points.get(after)) {
            (Some((u0, w0)), Some((u1, w1))) => w0 + (u - u0) / (u1 - u0) * (w1 - w0),
            (Some((_, w)), None) | (None, Some(&(_, w))) => w,
            (None, None) => 1.,
        }
    }
}

impl AllocationPolicy for Curve {
    fn propose(&mut self, ledger: &Ledger) -> usize {
        let n = ledger.solves();
        let weights: Vec<f64> = (0..n).map(|i| self.weight(progress(i, n))).collect();
        by_plan(&apportion(&weights, ledger.total()), ledger)
    }
}
