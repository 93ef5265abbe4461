//! What a network asks to be solved, and what a sampler asks of a network.

use std::sync::Arc;

use candle_core::Tensor;

use crate::{Detached, FixedPointMap, Level, Result, Reversible};

type Readout = Box<dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync>;

/// A fixed point problem: a map bound to its conditioning, where to start, and how to read the answer.
///
/// Everything that is contested — solver, budget, warm start, gradient — happens between
/// [`ImplicitModel::prepare`] and [`Problem::readout`], outside the network.
pub struct Problem {
    /// The map, tracked by autograd if the weights or the inputs are.
    pub map: Arc<dyn FixedPointMap>,
    /// The same map without a graph: for iterations that need no gradient.
    pub frozen: Arc<dyn FixedPointMap>,
    /// The map with its way back written out, where it has one: the same gradients in less memory and time.
    pub reversible: Option<Arc<dyn Reversible>>,
    /// The starting point that the network proposes, `(B, T, D)`.
    pub z0: Tensor,
    readout: Readout,
}

impl Problem {
    /// A problem whose frozen map is `map` on detached points.
    pub fn new(
        map: Arc<dyn FixedPointMap>,
        z0: Tensor,
        readout: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Self {
        let frozen = Arc::new(Detached(map.clone()));
        Self { map, frozen, reversible: None, z0, readout: Box::new(readout) }
    }

    /// Replaces the frozen map by one that builds no graph at all, for example over detached weights.
    pub fn with_frozen(mut self, frozen: Arc<dyn FixedPointMap>) -> Self {
        self.frozen = frozen;
        self
    }

    /// Offers a map that carries gradients back itself.
    pub fn with_reversible(mut self, reversible: Arc<dyn Reversible>) -> Self {
        self.reversible = Some(reversible);
        self
    }

    /// The network's answer, `(B, C, H, W)`, for the solution `z`, `(B, T, D)`.
    pub fn readout(&self, z: &Tensor) -> Result<Tensor> {
        (self.readout)(z)
    }
}

/// A network with an implicit part: layers before it here, layers after it in [`Problem::readout`].
pub trait ImplicitModel {
    /// Binds the map to the noisy latents `x` `(B, C, H, W)`, times `t` `(B)` and labels `y`, `(B)` or `(B, L)`.
    fn prepare(&self, x: &Tensor, t: &Tensor, y: &Tensor) -> Result<Problem>;

    /// The same in parts that can be recorded on a device and replayed; `None`, the default, for a network that cannot
    /// be taken apart.
    fn staged(&self) -> Option<Arc<dyn Staged>> {
        None
    }
}

/// [`ImplicitModel::prepare`] in three parts, so that the work between the first and the last can be recorded once and
/// replayed on other numbers.
///
/// Law: `assemble(&state(&inputs(x, t, y)?)?)` is `prepare(x, t, y)`, to the last bit.
pub trait Staged: Send + Sync {
    /// What the device reads of `x` `(B, C, H, W)`, `t` `(B)` and `y`, `(B)` or `(B, L)`: checked on the host, and all of
    /// it moved.
    ///
    /// # Errors
    ///
    /// Those of [`ImplicitModel::prepare`] about its arguments.
    fn inputs(&self, x: &Tensor, t: &Tensor, y: &Tensor) -> Result<Vec<Tensor>>;

    /// What a problem is made of. It depends on shapes, on the numbers in `inputs` and on the weights alone, and neither
    /// waits for the device nor sends anything to it that differs between calls.
    fn state(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>>;

    /// The problem that reads `state` where it lies: whoever overwrites `state` in place has another problem. Does no
    /// arithmetic on it: what is computed here is not computed again.
    fn assemble(&self, state: &[Tensor]) -> Result<Problem>;
}

impl<M: ImplicitModel + ?Sized> ImplicitModel for Box<M> {
    fn prepare(&self, x: &Tensor, t: &Tensor, y: &Tensor) -> Result<Problem> {
        (**self).prepare(x, t, y)
    }

    fn staged(&self) -> Option<Arc<dyn Staged>> {
        (**self).staged()
    }
}

/// What a network says about a noisy latent, whatever it was trained to predict.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// The clean latent, `(B, C, H, W)`.
    pub x0: Tensor,
    /// The noise, `(B, C, H, W)`.
    pub eps: Tensor,
    /// The raw second half of the output where the variance is learned, in [-1, 1] between the two posterior variances.
    pub log_var: Option<Tensor>,
}

/// `D(x; level)` with labels already bound. `&mut`, because one trajectory may remember its last solution.
pub trait Denoiser {
    /// Splits `x = alpha·x0 + sigma·eps` `(B, C, H, W)` at `level` into its two parts.
    fn denoise(&mut self, x: &Tensor, level: Level) -> Result<Prediction>;
}
