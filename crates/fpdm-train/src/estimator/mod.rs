//! How the gradient of a solution is estimated.

mod implicit;
mod jfb;
mod phantom;
mod sjfb;
mod trajectory;
mod unrolled;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};
use fpdm_core::{Error, Iterate, Problem, Result};
use rand::RngCore;

pub use self::implicit::{Effort, Implicit};
pub use self::jfb::{Jfb, MultiStepJfb};
pub use self::phantom::Phantom;
pub use self::sjfb::StochasticJfb;
pub use self::trajectory::Memory;
pub use self::unrolled::Unrolled;

/// Solves a [`Problem`] and knows how to carry a gradient from its solution back to the weights.
///
/// An estimator chooses which iterations make a graph. What it returns has no graph of its own: the caller puts a loss
/// on [`Estimate::iterates`], and [`Estimate::pullback`] takes the loss's gradient from there to the weights. So a
/// policy about memory or an adjoint equation is a matter of the estimator alone.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use fpdm_core::rng::{Stream, stream};
/// use fpdm_core::{Problem, Result};
/// use fpdm_train::{GradientEstimator, MultiStepJfb};
/// use std::sync::Arc;
///
/// // z = b + z/2: two steps with gradient give dz/db = 1 + 1/2.
/// let b = Var::new(&[1f64], &Device::Cpu)?;
/// let inside = b.as_tensor().clone();
/// let map = move |z: &Tensor| -> Result<Tensor> { Ok((z.affine(0.5, 0.)? + &inside)?) };
/// let problem = Problem::new(Arc::new(map), b.zeros_like()?, |z| Ok(z.clone()));
///
/// let estimator = MultiStepJfb { without_grad: 3, with_grad: 2, ..Default::default() };
/// let found = estimator.estimate(&problem, &mut stream(0, Stream::Solver, 0))?;
/// assert_eq!(found.solution().to_vec1::<f64>()?, [1.9375]);
/// let mut gradient = 0.;
/// found.pullback_solution(&Tensor::new(&[1f64], &Device::Cpu)?, &mut |mut grads| {
///     gradient += grads.remove(&b).map_or(Ok(0.), |g| g.sum_all()?.to_scalar::<f64>())?;
///     Ok(())
/// })?;
/// assert_eq!(gradient, 1.5);
/// # Result::<()>::Ok(())
/// ```
pub trait GradientEstimator: Send + Sync {
    /// Solves; random choices come from `rng`.
    fn estimate(&self, problem: &Problem, rng: &mut dyn RngCore) -> Result<Estimate>;
}

/// Takes the gradients of one backward pass; it is called as often as an estimator makes passes, and adds up.
///
/// Gradients of variables are tracked by Candle: detach what is kept, or it keeps the whole graph alive.
pub type Sink<'a> = &'a mut dyn FnMut(GradStore) -> Result<()>;

type Pullback = Box<dyn Fn(&[Option<Tensor>], Sink) -> Result<()>>;

/// A solution, the iterates before it that a loss may look at, and the way back.
pub struct Estimate {
    /// Iterations without gradient.
    pub n: usize,
    /// Iterations with gradient.
    pub m: usize,
    /// The iterates that a gradient can reach, outside any graph; the last is the solution.
    pub iterates: Vec<Tensor>,
    /// The last application: its residual says how far the solve got.
    pub last: Iterate,
    pullback: Pullback,
}

impl Estimate {
    /// An estimate of the iterates, at least one, and the function that takes one cotangent for each of them (`None`
    /// for zero) to the gradients of the weights.
    ///
    /// # Errors
    /// [`Error::Config`] without iterates.
    pub fn new(
        n: usize,
        iterates: Vec<Tensor>,
        last: Iterate,
        m: usize,
        pullback: impl Fn(&[Option<Tensor>], Sink) -> Result<()> + 'static,
    ) -> Result<Self> {
        if iterates.is_empty() {
            return Err(Error::config("iterates", "an estimate without iterates has no solution; pass at least one"));
        }
        let iterates = iterates.iter().map(Tensor::detach).collect();
        let last = Iterate { z: last.z.detach(), fz: last.fz.detach(), next: last.next.detach() };
        Ok(Self { n, m, iterates, last, pullback: Box::new(pullback) })
    }

    /// The solution, like the problem's `z0`.
    pub fn solution(&self) -> &Tensor {
        &self.iterates[self.iterates.len() - 1]
    }

    /// Carries one gradient for each of [`Estimate::iterates`] to the weights.
    ///
    /// # Errors
    /// [`Error::Shape`] where the number of cotangents is not that of the iterates; what `sink` returns.
    pub fn pullback(&self, cotangents: &[Option<Tensor>], sink: Sink) -> Result<()> {
        if cotangents.len() != self.iterates.len() {
            return Err(Error::shape("pullback: cotangents, one an iterate", self.iterates.len(), cotangents.len()));
        }
        (self.pullback)(cotangents, sink)
    }

    /// [`Estimate::pullback`] of a gradient at the solution alone.
    pub fn pullback_solution(&self, cotangent: &Tensor, sink: Sink) -> Result<()> {
        let mut all = vec![None; self.iterates.len()];
        if let Some(last) = all.last_mut() {
            *last = Some(cotangent.clone());
        }
        self.pullback(&all, sink)
    }
}

/// The gradients of `Σ ⟨y, g⟩`: the vector-Jacobian product of every `y` with its `g`.
fn vjp(pairs: &[(&Tensor, &Tensor)]) -> Result<GradStore> {
    let mut root: Option<Tensor> = None;
    for (y, g) in pairs {
        // A cotangent with a graph would be differentiated too.
        let term = (*y * g.detach())?.sum_all()?;
        root = Some(match root {
            Some(root) => (root + term)?,
            None => term,
        });
    }
    match root {
        Some(root) => Ok(root.backward()?),
        None => Ok(GradStore::default()),
    }
}

fn finite_number(field: &str, value: f64, range: std::ops::Range<f64>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(Error::config(field, format!("{value} is outside [{}, {})", range.start, range.end)))
}

/// Whether the type can hold gradients at all.
fn check_float(z: &Tensor) -> Result<()> {
    match z.dtype() {
        DType::F64 | DType::F32 | DType::BF16 | DType::F16 => Ok(()),
        other => Err(Error::shape("z0: a floating point tensor", "f64, f32, bf16 or f16", other)),
    }
}
