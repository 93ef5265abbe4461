//! Recorded networks that no problem is using.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Tensor};
use fpdm_core::Staged;

use super::recorder::Recorder;
use super::slot::Slot;

/// Slots that wait for a problem of their shape, at most; the ones that wait longest go first.
const IDLE: usize = 8;

/// All that recorded work depends on besides the numbers in tensors.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    inputs: Vec<(Vec<usize>, DType)>,
    pub(super) settings: u8,
}

impl Key {
    pub(super) fn new(inputs: &[Tensor], recorder: &dyn Recorder) -> Self {
        let inputs = inputs.iter().map(|t| (t.dims().to_vec(), t.dtype())).collect();
        Self { inputs, settings: recorder.settings() }
    }
}

pub(super) struct Pool {
    pub(super) recorder: Box<dyn Recorder>,
    /// The most elements of a state.
    pub(super) most: usize,
    idle: Mutex<Vec<Slot>>,
    /// What is not to be recorded: it is too large, or tracked, or it was tried.
    refused: Mutex<HashSet<Key>>,
    replays: AtomicUsize,
}

impl Pool {
    pub(super) fn new(recorder: Box<dyn Recorder>, most: usize) -> Self {
        Self { recorder, most, idle: Mutex::default(), refused: Mutex::default(), replays: AtomicUsize::new(0) }
    }

    /// A slot for `inputs` that nobody else has, recorded if need be; `None` where it cannot be.
    pub(super) fn take(self: &Arc<Self>, key: &Key, staged: &Arc<dyn Staged>, inputs: &[Tensor]) -> Option<Slot> {
        {
            let mut idle = lock(&self.idle);
            if let Some(place) = idle.iter().rposition(|slot| slot.key == *key) {
                return Some(idle.remove(place));
            }
        }
        if lock(&self.refused).contains(key) {
            return None;
        }
        // What fails here for another reason fails in the plain way too, with its own message.
        let slot = Slot::record(key.clone(), self, staged, inputs).ok().flatten();
        if slot.is_none() {
            lock(&self.refused).insert(key.clone());
        }
        slot
    }

    /// Takes back a slot whose problem is gone.
    pub(super) fn give(&self, slot: Slot) {
        let mut idle = lock(&self.idle);
        idle.push(slot);
        let spare = idle.len().saturating_sub(IDLE);
        let gone: Vec<Slot> = idle.drain(..spare).collect();
        drop(idle);
        drop(gone);
    }

    pub(super) fn count(&self) {
        self.replays.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn replays(&self) -> usize {
        self.replays.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        lock(&self.idle).len()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
