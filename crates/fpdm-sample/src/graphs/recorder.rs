//! What records: a GPU, or in tests a stand-in that overwrites its outputs as a GPU does.

use candle_core::{Device, Result, Tensor};

/// What is recorded.
pub(super) type Work = Box<dyn Fn() -> Result<Vec<Tensor>> + Send + Sync>;

/// Recorded work. Replays overwrite the outputs.
pub(super) trait Replay: Send {
    fn outputs(&self) -> &[Tensor];
    fn replay(&self) -> Result<()>;
}

pub(super) trait Recorder: Send + Sync {
    /// Whether work there can be recorded and replayed now.
    fn fits(&self, device: &Device) -> bool;

    /// Settings of the process that recorded work would not follow.
    fn settings(&self) -> u8;

    fn record(&self, device: &Device, work: Work) -> Result<Box<dyn Replay>>;
}

/// Overwrites `to` in place.
pub(super) fn set(to: &Tensor, from: &Tensor) -> Result<()> {
    to.flatten_all()?.slice_set(&from.detach().contiguous()?.flatten_all()?, 0, 0)
}

/// A tensor of its own memory with the same numbers.
pub(super) fn own(t: &Tensor) -> Result<Tensor> {
    t.detach().contiguous()?.copy()
}

pub(super) struct Gpu;

#[cfg(feature = "cuda")]
mod gpu {
    use candle_core::{Device, Result, Tensor, cuda_backend};
    use fpdm_kernels::cuda::{Graph, recordable};

    use super::{Gpu, Recorder, Replay, Work};

    impl Recorder for Gpu {
        fn fits(&self, device: &Device) -> bool {
            recordable(device)
        }

        fn settings(&self) -> u8 {
            let reduced = [
                cuda_backend::gemm_reduced_precision_f32(),
                cuda_backend::gemm_reduced_precision_f16(),
                cuda_backend::gemm_reduced_precision_bf16(),
            ];
            reduced.iter().enumerate().map(|(i, &on)| u8::from(on) << i).sum()
        }

        fn record(&self, device: &Device, work: Work) -> Result<Box<dyn Replay>> {
            Ok(Box::new(Graph::record(device, work)?))
        }
    }

    impl Replay for Graph<'static> {
        fn outputs(&self) -> &[Tensor] {
            Graph::outputs(self)
        }

        fn replay(&self) -> Result<()> {
            Graph::replay(self).map(|_| ())
        }
    }
}

#[cfg(not(feature = "cuda"))]
impl Recorder for Gpu {
    fn fits(&self, _: &Device) -> bool {
        false
    }

    fn settings(&self) -> u8 {
        0
    }

    fn record(&self, device: &Device, _: Work) -> Result<Box<dyn Replay>> {
        candle_core::bail!("nothing is recorded on {:?} without the feature `cuda`", device.location())
    }
}
