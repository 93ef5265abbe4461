//! A network recorded for one shape: memory that replays read and write, for one problem at a time.

use std::sync::{Arc, Weak};

use candle_core::{Device, Error as CandleError, Tensor};
use fpdm_core::{Problem, Result, Staged};

use super::pool::{Key, Pool};
use super::recorder::{Replay, Work, own, set};

/// Applications that are recorded as one, at most: so many graphs a slot at most, and beyond it launches no longer show.
pub(super) const FUSED: usize = 16;

/// A part that is recorded when it is first wanted.
enum Part {
    New,
    Recorded(Box<dyn Replay>),
    /// It was tried.
    Refused,
}

pub(super) struct Slot {
    pub(super) key: Key,
    device: Device,
    /// Weak: idle slots are in the pool.
    pool: Weak<Pool>,
    inputs: Vec<Tensor>,
    begin: Box<dyn Replay>,
    /// Reads the outputs of `begin` where they lie.
    problem: Arc<Problem>,
    /// The point of `repeats` and `finish`.
    z: Tensor,
    /// By the number of applications, less 1.
    repeats: [Part; FUSED],
    finish: Part,
}

/// Weights may be tracked where inputs are not, in any part.
fn is_tracked_or_larger(staged: &dyn Staged, inputs: &[Tensor], most: usize) -> Result<bool> {
    let state = staged.state(inputs)?;
    let problem = staged.assemble(&state)?;
    if problem.z0.elem_count() > most || state.iter().any(Tensor::track_op) {
        return Ok(true);
    }
    let image = problem.map.apply(&problem.z0)?;
    Ok(image.track_op() || problem.readout(&image)?.track_op())
}

impl Slot {
    /// `None` for what is better not recorded.
    pub(super) fn record(
        key: Key,
        pool: &Arc<Pool>,
        staged: &Arc<dyn Staged>,
        inputs: &[Tensor],
    ) -> Result<Option<Self>> {
        let Some(device) = inputs.first().map(|input| input.device().clone()) else { return Ok(None) };
        if is_tracked_or_larger(&**staged, inputs, pool.most)? {
            return Ok(None);
        }
        let place = |input: &Tensor| -> candle_core::Result<Tensor> {
            let fixed = Tensor::zeros(input.shape(), input.dtype(), input.device())?;
            set(&fixed, input)?;
            Ok(fixed)
        };
        let inputs = inputs.iter().map(place).collect::<candle_core::Result<Vec<_>>>()?;
        let (network, read) = (staged.clone(), inputs.clone());
        let work: Work = Box::new(move || network.state(&read).map_err(CandleError::wrap));
        let begin = pool.recorder.record(&device, work)?;
        let problem = Arc::new(staged.assemble(begin.outputs())?);
        let z = own(&problem.z0)?;
        let (repeats, finish) = ([const { Part::New }; FUSED], Part::New);
        Ok(Some(Self { key, device, pool: Arc::downgrade(pool), inputs, begin, problem, z, repeats, finish }))
    }

    /// Makes the problem that of `inputs`. Where it starts, for the caller to keep.
    pub(super) fn begin(&self, inputs: &[Tensor]) -> Result<Tensor> {
        for (to, from) in self.inputs.iter().zip(inputs) {
            set(to, from)?;
        }
        self.begin.replay()?;
        self.count();
        Ok(own(&self.problem.z0)?)
    }

    /// What the problem is made of, for the caller to keep.
    pub(super) fn state(&self) -> Result<Vec<Tensor>> {
        Ok(self.begin.outputs().iter().map(own).collect::<candle_core::Result<_>>()?)
    }

    /// The last point and image of `n` applications, 1 to [`FUSED`], for the caller to keep; `None` where they have to
    /// go the plain way.
    pub(super) fn repeat(&mut self, z: &Tensor, n: usize) -> Result<Option<(Tensor, Tensor)>> {
        let (problem, read) = (self.problem.clone(), self.z.clone());
        let work = move || {
            let (point, image) = problem.frozen.repeat(&read, n).map_err(CandleError::wrap)?;
            // The point of a single application is the caller's.
            Ok(if n == 1 { vec![image] } else { vec![point, image] })
        };
        let Some(found) = self.run(z, |slot| slot.repeats.get_mut(n - 1), Box::new(work))? else { return Ok(None) };
        Ok(match <[Tensor; 2]>::try_from(found) {
            Ok([point, image]) => Some((point, image)),
            Err(mut image) => image.pop().map(|image| (z.clone(), image)),
        })
    }

    /// The readout, for the caller to keep; `None` where it has to go the plain way.
    pub(super) fn finish(&mut self, z: &Tensor) -> Result<Option<Tensor>> {
        let (problem, read) = (self.problem.clone(), self.z.clone());
        let work = move || Ok(vec![problem.readout(&read).map_err(CandleError::wrap)?]);
        Ok(self.run(z, |slot| Some(&mut slot.finish), Box::new(work))?.and_then(|mut found| found.pop()))
    }

    /// Copies of the outputs of a part at `z`.
    fn run(
        &mut self,
        z: &Tensor,
        part: impl FnOnce(&mut Self) -> Option<&mut Part>,
        work: Work,
    ) -> Result<Option<Vec<Tensor>>> {
        let Some(pool) = self.pool.upgrade() else { return Ok(None) };
        let like = z.shape() == self.z.shape() && z.dtype() == self.z.dtype() && z.device().same_device(&self.device);
        if !like || !pool.recorder.fits(&self.device) || pool.recorder.settings() != self.key.settings {
            return Ok(None);
        }
        set(&self.z, z)?;
        let device = self.device.clone();
        let Some(part) = part(self) else { return Ok(None) };
        if matches!(part, Part::New) {
            *part = pool.recorder.record(&device, work).map_or(Part::Refused, Part::Recorded);
        }
        let Part::Recorded(graph) = part else { return Ok(None) };
        graph.replay()?;
        pool.count();
        Ok(Some(graph.outputs().iter().map(own).collect::<candle_core::Result<_>>()?))
    }

    fn count(&self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.count();
        }
    }
}
