//! Maps that carry gradients back themselves.

use std::any::Any;

use candle_core::Tensor;
use candle_core::backprop::GradStore;

use crate::Result;

/// A map whose way back is written out: no autograd graph, only what the way back needs is kept, and the gradients of a
/// weight are added up over all applications as they are made.
///
/// An alternative to backpropagation through [`FixedPointMap::apply`](crate::FixedPointMap::apply) with the same
/// result; a [`Problem`](crate::Problem) offers it where it can.
pub trait Reversible: Send + Sync {
    /// One application, `f(z)` outside any graph, and what [`Reverse::pull`] wants of it.
    fn record(&self, z: &Tensor) -> Result<(Tensor, Kept)>;

    /// A way back through any number of recorded applications, the last one first.
    fn begin(&self) -> Result<Box<dyn Reverse + '_>>;
}

/// What a recorded application keeps; only the map that made it can read it.
pub type Kept = Box<dyn Any + Send + Sync>;

/// A way back in progress.
pub trait Reverse {
    /// From the gradient at `f(z)` to the gradient at `z`; those of weights and conditioning are added up inside.
    ///
    /// Takes what was kept, so that its memory can be used again on the way.
    ///
    /// # Errors
    /// If `kept` is another map's.
    fn pull(&mut self, kept: Kept, gradient: &Tensor) -> Result<Tensor>;

    /// Hands the gradients over: those of the map's weights, and, carried on through what the map was bound to, those of
    /// everything before the solve. A variable may get several, to be added.
    fn finish(self: Box<Self>, sink: &mut dyn FnMut(GradStore) -> Result<()>) -> Result<()>;
}
