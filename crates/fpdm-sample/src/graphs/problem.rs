//! A problem whose parts are replays.

use std::sync::{Arc, Mutex, OnceLock};

use candle_core::Tensor;
use fpdm_core::{FixedPointMap, Problem, Result, Staged};

use super::pool::{Pool, lock};
use super::slot::{FUSED, Slot};

/// A slot for as long as a part of the problem is alive.
struct Lease {
    slot: Mutex<Option<Slot>>,
    pool: Arc<Pool>,
    staged: Arc<dyn Staged>,
    /// The same problem in memory of its own, for what goes the plain way: it may outlive the lease.
    plain: OnceLock<Problem>,
}

/// Binds `slot` to `inputs`.
pub(super) fn begin(slot: Slot, inputs: &[Tensor], staged: &Arc<dyn Staged>, pool: &Arc<Pool>) -> Result<Problem> {
    // A slot that fails is not given back.
    let z0 = slot.begin(inputs)?;
    let (pool, staged, plain) = (pool.clone(), staged.clone(), OnceLock::new());
    let lease = Arc::new(Lease { slot: Mutex::new(Some(slot)), pool, staged, plain });
    let map = Arc::new(Replayed { lease: lease.clone(), frozen: false });
    let frozen = Arc::new(Replayed { lease: lease.clone(), frozen: true });
    Ok(Problem::new(map, z0, move |z| lease.readout(z)).with_frozen(frozen))
}

impl Lease {
    /// Uses the slot, and lets it go for good if that fails.
    fn with<T>(&self, f: impl FnOnce(&mut Slot) -> Result<Option<T>>) -> Result<Option<T>> {
        let mut guard = lock(&self.slot);
        let Some(slot) = guard.as_mut() else { return Ok(None) };
        let found = f(slot);
        if found.is_err() {
            // First what it holds, or the plain way would have nothing to go on.
            self.plain_of(slot).ok();
            *guard = None;
        }
        found
    }

    fn plain_of(&self, slot: &Slot) -> Result<&Problem> {
        if let Some(plain) = self.plain.get() {
            return Ok(plain);
        }
        let plain = self.staged.assemble(&slot.state()?)?;
        Ok(self.plain.get_or_init(|| plain))
    }

    fn plain(&self) -> Result<&Problem> {
        if let Some(slot) = lock(&self.slot).as_ref() {
            self.plain_of(slot)?;
        }
        let lost = || candle_core::Error::Msg("a problem was lost with the graph that held it".to_owned());
        Ok(self.plain.get().ok_or_else(lost)?)
    }

    fn readout(&self, z: &Tensor) -> Result<Tensor> {
        let found = if z.track_op() { None } else { self.with(|slot| slot.finish(z))? };
        match found {
            Some(output) => Ok(output),
            None => self.plain()?.readout(z),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(slot) = lock(&self.slot).take() {
            self.pool.give(slot);
        }
    }
}

struct Replayed {
    lease: Arc<Lease>,
    /// Tracked points are cut from their graph.
    frozen: bool,
}

impl Replayed {
    fn plain(&self) -> Result<&Arc<dyn FixedPointMap>> {
        let plain = self.lease.plain()?;
        Ok(if self.frozen { &plain.frozen } else { &plain.map })
    }

    fn fused(&self, z: &Tensor, n: usize) -> Result<(Tensor, Tensor)> {
        let found = if z.track_op() { None } else { self.lease.with(|slot| slot.repeat(z, n))? };
        match found {
            Some(found) => Ok(found),
            None => self.plain()?.repeat(z, n),
        }
    }
}

impl FixedPointMap for Replayed {
    fn apply(&self, z: &Tensor) -> Result<Tensor> {
        Ok(self.repeat(z, 1)?.1)
    }

    fn repeat(&self, z: &Tensor, n: usize) -> Result<(Tensor, Tensor)> {
        let mut z = if self.frozen { z.detach() } else { z.clone() };
        let mut left = n.max(1);
        while left > FUSED {
            z = self.fused(&z, FUSED)?.1;
            left -= FUSED;
        }
        self.fused(&z, left)
    }

    fn rows(&self, rows: &[usize]) -> Result<Option<Arc<dyn FixedPointMap>>> {
        self.plain()?.rows(rows)
    }
}
