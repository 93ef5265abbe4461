//! Running a solver until a rule stops it.

use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::Tensor;

use crate::fixed_point::{check_image, host, samples};
use crate::{Error, FixedPointMap, Result, Solver, StopRule};

/// Why a solve ended. Running out of budget is no error: fixed point diffusion models stop early by design.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StopReason {
    /// The applications that were allowed are spent.
    Budget,
    /// The residual is within tolerance.
    Converged,
    /// The residual no longer falls.
    Stagnated,
    /// The residual has grown out of hand.
    Diverged,
    /// The solver had no further iterate.
    Exhausted,
}

/// What a solve returns.
#[derive(Clone, Debug)]
pub struct Solution {
    /// The last [`Iterate::next`](crate::Iterate::next): after `n` applications, the `n`-th iterate.
    pub z: Tensor,
    /// Iterates taken from the solver.
    pub iters: usize,
    /// Applications of the map, counted at the map. A solver that keeps the law of [`Solver`] has as many as `iters`.
    pub applications: usize,
    /// Why the solve ended.
    pub reason: StopReason,
    /// `‖f(z) − z‖ / ‖f(z)‖` of the worst sample at every iterate; empty unless from [`solve_recorded`].
    pub residuals: Vec<f64>,
}

impl Solution {
    /// Passes the solution on if all its values are finite, else [`Error::NonFinite`].
    ///
    /// A budget alone never looks at the values, because looking makes an accelerator wait; this looks once, at the end.
    ///
    /// # Cost
    ///
    /// One reduction and one synchronisation.
    pub fn finite(self) -> Result<Self> {
        // 0·z is 0 where z is finite and NaN elsewhere; a sum of z itself could overflow.
        let zeros = host(&samples(&self.z.detach())?.affine(0., 0.)?.sum(1)?)?;
        if zeros.iter().all(|v| v.is_finite()) {
            return Ok(self);
        }
        Err(Error::NonFinite { at: "the solution z".into(), iter: self.applications })
    }
}

/// Iterates `solver` on `f` from `z0` until `stop` says so.
///
/// What comes back is the solver's next point, `z_n` after `n` applications: for
/// [`Picard`](crate::Picard) the last image, as in the published sampling loop; for [`Anderson`](crate::Anderson) and
/// [`Broyden`](crate::Broyden) the point that the last application has paid for but nobody has evaluated. A residual
/// that a rule has measured belongs to the point before it. With no budget at all `z0` comes back.
///
/// # Errors
///
/// [`Error::Shape`] where an image differs from its point in shape or dtype, or `z0` is empty;
/// [`Error::NonFinite`] from rules that measure; whatever the map, the solver or the rule return.
///
/// # Cost
///
/// The map's applications and the solver's own work; synchronises only where the solver or the rule does.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fpdm_core::{Budget, Picard, Result, StopReason, Tolerance, solve};
///
/// let f = |z: &Tensor| -> Result<Tensor> { Ok(z.cos()?) };
/// let z0 = Tensor::zeros(1, candle_core::DType::F64, &Device::Cpu)?;
/// let mut stop = (Budget(100), Tolerance { rel: 1e-10, ..Default::default() });
/// let found = solve(&Picard::default(), &f, z0, &mut stop)?;
/// assert_eq!(found.reason, StopReason::Converged);
/// assert!((found.z.to_vec1::<f64>()?[0] - 0.739085133215).abs() < 1e-9);
/// # Result::<()>::Ok(())
/// ```
pub fn solve(solver: &dyn Solver, f: &dyn FixedPointMap, z0: Tensor, stop: &mut dyn StopRule) -> Result<Solution> {
    run(solver, f, z0, stop, false)
}

/// [`solve`], and the relative residual of every iterate in [`Solution::residuals`].
///
/// # Cost
///
/// One synchronisation an application on top of [`solve`]'s.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fpdm_core::{Budget, Picard, Result, solve_recorded};
///
/// let f = |z: &Tensor| -> Result<Tensor> { Ok(z.affine(0.5, 1.)?) };
/// let z0 = Tensor::zeros(1, candle_core::DType::F64, &Device::Cpu)?;
/// let found = solve_recorded(&Picard::default(), &f, z0, &mut Budget(2))?;
/// assert_eq!(found.residuals, [1., 0.5 / 1.5]);
/// # Result::<()>::Ok(())
/// ```
pub fn solve_recorded(
    solver: &dyn Solver,
    f: &dyn FixedPointMap,
    z0: Tensor,
    stop: &mut dyn StopRule,
) -> Result<Solution> {
    run(solver, f, z0, stop, true)
}

fn run(
    solver: &dyn Solver,
    f: &dyn FixedPointMap,
    z0: Tensor,
    stop: &mut dyn StopRule,
    record: bool,
) -> Result<Solution> {
    if z0.elem_count() == 0 {
        return Err(Error::shape("solve: `z0`", "at least one element", z0.shape()));
    }
    let f = Metered { map: f, calls: AtomicUsize::new(0) };
    let (mut z, mut iters, mut residuals) = (z0.clone(), 0, Vec::new());
    let mut iterates = solver.iterate(&f, z0);
    let reason = loop {
        if iters == 0 && stop.limit() == Some(0) {
            break StopReason::Budget;
        }
        // Where nobody looks at the iterates between, they need not be handed out.
        let n = if record { 1 } else { 1 + stop.blind(iters) };
        let it = match solver.leap(&f, &z, n) {
            Some(it) => {
                iters += n;
                it?
            }
            None => {
                let Some(it) = iterates.next().transpose()? else { break StopReason::Exhausted };
                iters += 1;
                it
            }
        };
        if record {
            residuals.push(it.worst(iters)?.rel);
        }
        let verdict = stop.check(iters, &it)?;
        z = it.next;
        if let Some(reason) = verdict {
            break reason;
        }
    };
    let applications = f.calls.load(Ordering::Relaxed);
    Ok(Solution { z, iters, applications, reason, residuals })
}

/// Counts applications and refuses an image that cannot be a next point.
struct Metered<'f> {
    map: &'f dyn FixedPointMap,
    calls: AtomicUsize,
}

impl FixedPointMap for Metered<'_> {
    fn apply(&self, z: &Tensor) -> Result<Tensor> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let fz = self.map.apply(z)?;
        check_image(z, &fz)?;
        Ok(fz)
    }

    fn repeat(&self, z: &Tensor, n: usize) -> Result<(Tensor, Tensor)> {
        self.calls.fetch_add(n, Ordering::Relaxed);
        let (point, image) = self.map.repeat(z, n)?;
        check_image(z, &point)?;
        check_image(z, &image)?;
        Ok((point, image))
    }
}
