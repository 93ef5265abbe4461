//! Work that is recorded once and replayed: small batches spend more time on launches than on arithmetic.

use candle_core::cuda::cudarc::driver::CudaGraph;
use candle_core::cuda::cudarc::driver::sys::{CUgraphInstantiate_flags as Flags, CUstreamCaptureMode as Mode};
use candle_core::{Device, Error, Result, Tensor, bail};

/// A recorded function of tensors that stay where they are.
///
/// The function's inputs are whatever tensors it refers to: overwrite them in place ([`Graph::set`]) and
/// [`Graph::replay`]. Shapes, the number of operations and everything that the function reads on the host are as they
/// were when it was recorded; weights are read where they lie, so that updates in place are seen. Record another graph
/// for another shape or budget.
///
/// ```no_run
/// use candle_core::{DType, Device, Tensor};
/// use fpdm_kernels::cuda::{Graph, cuda};
///
/// let device = cuda(0, Default::default())?;
/// let x = Tensor::zeros(4, DType::F32, &device)?;
/// let graph = Graph::record(&device, || Ok(vec![fpdm_kernels::gelu(&x)?]))?;
/// Graph::set(&x, &Tensor::new(&[1f32, 2., 3., 4.], &device)?)?;
/// let y = graph.replay()?[0].clone(); // overwritten by the next replay
/// # candle_core::Result::Ok(())
/// ```
pub struct Graph<'a> {
    graph: CudaGraph,
    outputs: Vec<Tensor>,
    /// A replay reads the memory of what the function refers to, so that it must outlive the recording.
    _function: Box<dyn Fn() -> Result<Vec<Tensor>> + 'a>,
}

impl std::fmt::Debug for Graph<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph").field("outputs", &self.outputs).finish_non_exhaustive()
    }
}

impl<'a> Graph<'a> {
    /// Runs `f` twice, so that kernels are compiled and products tuned, and then records it without running it.
    ///
    /// # Errors
    /// If `device` is no GPU that was set up by [`cuda`](super::cuda) with one stream, `f` fails, or it waits for the
    /// device or sends more than a few numbers to it.
    pub fn record(device: &Device, f: impl Fn() -> Result<Vec<Tensor>> + 'a) -> Result<Self> {
        let inner = device.as_cuda_device()?;
        if inner.is_event_tracking() {
            bail!("Graph::record: the device tracks events; open it with `fpdm_kernels::cuda::cuda`")
        }
        let stream = inner.cuda_stream();
        // What candle sends with its launches is kept on the device, or it could not be recorded.
        let _kept = inner.enable_cuda_graph_htod_cache();
        f()?;
        let outputs: Vec<Tensor> = f()?.iter().map(|t| t.detach().copy()).collect::<Result<_>>()?;
        device.synchronize()?;
        stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(Error::wrap)?;
        let recorded = f().and_then(|found| outputs.iter().zip(&found).try_for_each(|(to, from)| Self::set(to, from)));
        // The recording must end whatever happened in it.
        let graph = stream.end_capture(Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH).map_err(Error::wrap);
        recorded?;
        match graph? {
            Some(graph) => Ok(Self { graph, outputs, _function: Box::new(f) }),
            None => bail!("Graph::record: nothing was recorded"),
        }
    }

    /// Overwrites the contiguous tensor `to` with `from`, **in place**.
    ///
    /// # Errors
    /// If shapes or types differ, or `to` is not contiguous.
    pub fn set(to: &Tensor, from: &Tensor) -> Result<()> {
        if to.shape() != from.shape() || to.dtype() != from.dtype() {
            let (expected, got) = ((to.dims(), to.dtype()), (from.dims(), from.dtype()));
            bail!("Graph::set: expected {expected:?}, got {got:?}")
        }
        if !to.is_contiguous() {
            bail!("Graph::set: `to` must be contiguous, got strides {:?}", to.stride())
        }
        to.flatten_all()?.slice_set(&from.detach().contiguous()?.flatten_all()?, 0, 0)
    }

    /// Does the recorded work again and returns what it left: the same tensors at every call, overwritten.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn replay(&self) -> Result<&[Tensor]> {
        self.graph.launch().map_err(Error::wrap)?;
        Ok(&self.outputs)
    }
}
