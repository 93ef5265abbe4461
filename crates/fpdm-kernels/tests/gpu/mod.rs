//! The device of the tests on a GPU, and its memory.

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Result, Tensor};
use fpdm_kernels::cuda::{Cuda, Tf32, cuda};

/// Hold this for the length of a test: tests share a device, and what one does while another records would be recorded too.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn device() -> Device {
    static DEVICE: std::sync::OnceLock<Device> = std::sync::OnceLock::new();
    DEVICE.get_or_init(|| cuda(0, Cuda { tf32: Tf32::Off, ..Cuda::default() }).expect("a GPU")).clone()
}

/// Random cases of a test: `FPDM_CASES`, for tools under which each takes minutes, or `most`.
pub(crate) fn cases(most: u64) -> u64 {
    std::env::var("FPDM_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(most).min(most)
}

/// Memory that is free now held NaN before, so that what a kernel leaves unwritten shows.
pub(crate) fn poison(elements: usize) -> Result<()> {
    let full = |n: usize| Tensor::full(f32::NAN, n.max(1), &device());
    let all = [full(elements)?, full(elements)?, full(elements / 2)?, full(4 * elements)?, full(1024)?];
    drop(all);
    device().synchronize()
}
