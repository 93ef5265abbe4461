use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;
use fpdm_core::{Error, FixedPointMap, Result, Solver};

use super::watch::Watch;

/// Iterates `solver` on `map` from `z0` until each sample's own watch says so. Returns the solution, and the applications
/// of each sample.
///
/// A sample that has ended leaves the batch, and what it has does not depend on those that go on.
pub(super) fn solve_each(
    solver: &dyn Solver,
    map: &Arc<dyn FixedPointMap>,
    z0: &Tensor,
    watches: &mut [Watch],
) -> Result<(Tensor, Vec<usize>)> {
    let map = Remaining { map, cut: Mutex::new(None), calls: AtomicUsize::new(0) };
    let mut points = single(z0)?;
    if points.len() != watches.len() {
        return Err(Error::shape("policies: one an image", watches.len(), points.len()));
    }
    let mut applications = vec![0; points.len()];
    let mut going: Vec<usize> = (0..points.len()).collect();
    let mut iterates = solver.iterate(&map, z0.clone());
    let mut iter = 0;
    while !going.is_empty() {
        let Some(it) = iterates.next().transpose()? else { break };
        iter += 1;
        let residuals = it.residuals()?;
        let before = going.len();
        let mut still = Vec::with_capacity(before);
        for &row in &going {
            let (next, residual) = (it.next.narrow(0, row, 1)?, residuals[row]);
            let finite = || match residual.abs.is_finite() && !residual.rel.is_nan() {
                true => Ok(residual.rel),
                false => Err(Error::NonFinite { at: "the residual f(z) − z".into(), iter }),
            };
            if watches[row].look(iter, &next, finite)?.is_none() {
                still.push(row);
            }
            (points[row], applications[row]) = (next, iter);
        }
        going = still;
        if !going.is_empty() && going.len() < before {
            map.keep(&going)?;
        }
    }
    let calls = map.calls.load(Ordering::Relaxed);
    if calls != iter {
        let why = format!("{calls} applications for {iter} items; one item, one application");
        return Err(Error::config("solver", why));
    }
    Ok((Tensor::cat(&points, 0)?, applications))
}

/// The samples of a batch, each a batch of one.
fn single(z: &Tensor) -> Result<Vec<Tensor>> {
    Ok((0..z.dim(0)?).map(|row| z.narrow(0, row, 1)).collect::<candle_core::Result<_>>()?)
}

/// The map for the samples that go on; the image of others is their point, for a solver that still holds the whole batch.
struct Remaining<'m> {
    map: &'m Arc<dyn FixedPointMap>,
    /// All of them, or a map that cannot be cut: nothing.
    cut: Mutex<Option<Cut>>,
    calls: AtomicUsize,
}

/// Rows, and the map for them alone.
type Cut = (Vec<usize>, Arc<dyn FixedPointMap>);

impl Remaining<'_> {
    fn keep(&self, rows: &[usize]) -> Result<()> {
        let cut = self.map.rows(rows)?.map(|map| (rows.to_vec(), map));
        *self.cut.lock().unwrap_or_else(PoisonError::into_inner) = cut;
        Ok(())
    }
}

impl FixedPointMap for Remaining<'_> {
    fn apply(&self, z: &Tensor) -> Result<Tensor> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some((rows, map)) = cut else { return self.map.apply(z) };
        let mut all = single(z)?;
        let some: Vec<&Tensor> = rows.iter().map(|&row| &all[row]).collect();
        let image = single(&map.apply(&Tensor::cat(&some, 0)?)?)?;
        if image.len() != rows.len() {
            return Err(Error::shape("f(z): like its point `z`", rows.len(), image.len()));
        }
        for (row, fz) in rows.into_iter().zip(image) {
            all[row] = fz;
        }
        Ok(Tensor::cat(&all, 0)?)
    }
}
