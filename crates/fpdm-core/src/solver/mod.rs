//! How a map is iterated.

mod anderson;
mod broyden;
mod picard;

use candle_core::Tensor;

pub use self::anderson::Anderson;
pub use self::broyden::Broyden;
pub use self::picard::Picard;
use crate::{FixedPointMap, Iterate, Result};

/// The iterates of one solve, in order; after an error, none.
pub type Iterates<'a> = Box<dyn Iterator<Item = Result<Iterate>> + 'a>;

/// An iterator factory. Law: one item costs exactly one application of `f`.
///
/// So a budget counts items, a stop rule looks at an item, stepping by hand is a `for` loop, and no state outlives its
/// solve: it lives in the iterator. To carry a quasi-Newton estimate from one solve to the next, a solver needs
/// interior state of its own.
///
/// # Shapes
///
/// Every iterate has the shape and dtype of `z0`. Samples along dimension 0 are solved independently of each other.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fpdm_core::{Picard, Result, Solver};
///
/// let f = |z: &Tensor| -> Result<Tensor> { Ok(z.affine(0.5, 1.)?) };
/// let z0 = Tensor::zeros(1, candle_core::DType::F64, &Device::Cpu)?;
/// for it in Picard::default().iterate(&f, z0).take(3) {
///     println!("{}", it?.fz); // 1, 1.5, 1.75
/// }
/// # Result::<()>::Ok(())
/// ```
pub trait Solver: Send + Sync {
    /// Lazily iterates `f` from `z0`.
    fn iterate<'a>(&'a self, f: &'a dyn FixedPointMap, z0: Tensor) -> Iterates<'a>;

    /// The `n`-th iterate from `z`, 1 or more, by `n` applications whose results nobody looks at: what item `n` of
    /// [`Solver::iterate`] is. `None`, the default, for a solver that has to look itself.
    ///
    /// For solvers without memory alone: [`solve`](crate::solve) goes on from the iterate that comes back as if it
    /// started there. A solver leaps always or never.
    fn leap(&self, _f: &dyn FixedPointMap, _z: &Tensor, _n: usize) -> Option<Result<Iterate>> {
        None
    }
}

/// A solver's iterates from its update rule `z_{n+1} = rule(z_n, f(z_n))`, which keeps the law of [`Solver`].
///
/// The rule is a closure, and its captured variables are the solver's state.
///
/// ```
/// use candle_core::Tensor;
/// use fpdm_core::{FixedPointMap, Iterates, Solver, iterates};
///
/// struct Halfway;
/// impl Solver for Halfway {
///     fn iterate<'a>(&'a self, f: &'a dyn FixedPointMap, z0: Tensor) -> Iterates<'a> {
///         iterates(f, z0, |z, fz| Ok(((z + fz)? / 2.)?))
///     }
/// }
/// ```
pub fn iterates<'a>(
    f: &'a dyn FixedPointMap,
    z0: Tensor,
    mut rule: impl FnMut(&Tensor, &Tensor) -> Result<Tensor> + 'a,
) -> Iterates<'a> {
    let mut point = Some(z0);
    Box::new(std::iter::from_fn(move || {
        let z = point.take()?;
        let mut step = || {
            let fz = f.apply(&z)?;
            let next = rule(&z, &fz)?;
            Ok((fz, next))
        };
        match step() {
            Ok((fz, next)) => {
                point = Some(next.clone());
                Some(Ok(Iterate { z, fz, next }))
            }
            Err(error) => Some(Err(error)),
        }
    }))
}

/// The iterates of a solver that cannot start.
fn refuse<'a>(error: crate::Error) -> Iterates<'a> {
    Box::new(std::iter::once(Err(error)))
}
