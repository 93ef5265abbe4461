//! Work that is recorded on a GPU once and replayed: at small batches launches cost more than arithmetic.

mod pool;
mod problem;
mod recorder;
mod slot;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use candle_core::Tensor;
use fpdm_core::{Error, ImplicitModel, Problem, Result, Staged};

use self::pool::{Key, Pool};
use self::recorder::{Gpu, Recorder};

/// Whether networks are recorded on devices that can, and replayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Graphs {
    /// Where it is likely to pay: up to 4 Mi elements of state `z` `(B, T, D)`, an estimate of where copies in and out of
    /// what is recorded overtake launches.
    #[default]
    Auto,
    /// At every size.
    On,
    /// Never.
    Off,
}

impl Graphs {
    /// The most elements of `z`.
    fn most(self) -> usize {
        match self {
            Self::Auto => 4 << 20,
            Self::On => usize::MAX,
            Self::Off => 0,
        }
    }
}

impl fmt::Display for Graphs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

impl FromStr for Graphs {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let all = [Self::Auto, Self::On, Self::Off];
        let found = all.into_iter().find(|graphs| graphs.to_string() == name);
        found.ok_or_else(|| Error::config("graphs", format!("`{name}` is none of auto, on, off")))
    }
}

/// A network whose problems are replays, with the same results to the last bit.
///
/// What comes before the solve, up to 16 applications in a row, and the readout are recorded at their first use for each
/// shape and dtype of the inputs, and replayed ever after: times, labels and latents are copied into place before.
/// Weights are read where they lie, so that changes in place are seen. What callers get are copies that no replay
/// overwrites, and problems that are alive at once share no memory.
///
/// Everything else goes the plain way: devices other than GPUs opened by `fpdm_kernels::cuda::cuda`, a build without the
/// feature `cuda`, networks that are not [`Staged`], weights or points that are tracked by autograd, samples cut out of
/// a batch, and whatever cannot be recorded.
///
/// # Cost
///
/// The first problem of a shape computes each of its parts some three times. Memory for each of up to 8 shapes, and for
/// each further problem that is alive at once: the inputs, two states, and what a problem is made of. While something is
/// recorded, which happens inside calls of this network and its problems, no other thread may use the device.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fpdm_core::{ImplicitModel, Problem, Result};
/// use fpdm_sample::{Graphed, Graphs};
///
/// struct Toy;
/// impl ImplicitModel for Toy {
///     fn prepare(&self, x: &Tensor, _: &Tensor, _: &Tensor) -> Result<Problem> {
///         let map = |z: &Tensor| -> Result<Tensor> { Ok((z * 0.5)?) };
///         Ok(Problem::new(std::sync::Arc::new(map), x.clone(), |z| Ok(z.clone())))
///     }
/// }
///
/// let network = Graphed::new(Toy, Graphs::Auto);
/// let x = Tensor::new(&[[2f32]], &Device::Cpu)?;
/// let problem = network.prepare(&x, &x, &x)?;
/// assert_eq!(problem.map.apply(&problem.z0)?.to_vec2::<f32>()?, [[1.]]);
/// assert_eq!(network.replays(), 0, "there are no graphs on a CPU");
/// # Result::<()>::Ok(())
/// ```
pub struct Graphed<M> {
    model: M,
    /// The network in parts; `None` where nothing is to be recorded.
    staged: Option<Arc<dyn Staged>>,
    pool: Arc<Pool>,
}

impl<M: ImplicitModel> Graphed<M> {
    /// `model` as it is with [`Graphs::Off`].
    pub fn new(model: M, graphs: Graphs) -> Self {
        Self::with(model, graphs, Box::new(Gpu))
    }

    fn with(model: M, graphs: Graphs, recorder: Box<dyn Recorder>) -> Self {
        let staged = model.staged().filter(|_| graphs != Graphs::Off);
        Self { model, staged, pool: Arc::new(Pool::new(recorder, graphs.most())) }
    }

    /// The network inside.
    pub fn get_ref(&self) -> &M {
        &self.model
    }

    /// Graphs replayed so far: 0 where everything went the plain way.
    pub fn replays(&self) -> usize {
        self.pool.replays()
    }
}

impl<M: ImplicitModel> ImplicitModel for Graphed<M> {
    fn prepare(&self, x: &Tensor, t: &Tensor, y: &Tensor) -> Result<Problem> {
        let tracked = [x, t, y].iter().any(|input| input.track_op());
        let staged = self.staged.as_ref().filter(|_| !tracked && self.pool.recorder.fits(x.device()));
        let Some(staged) = staged else { return self.model.prepare(x, t, y) };
        let inputs = staged.inputs(x, t, y)?;
        match self.pool.take(&Key::new(&inputs, &*self.pool.recorder), staged, &inputs) {
            Some(slot) => problem::begin(slot, &inputs, staged, &self.pool),
            None => staged.assemble(&staged.state(&inputs)?),
        }
    }

    fn staged(&self) -> Option<Arc<dyn Staged>> {
        self.model.staged()
    }
}
