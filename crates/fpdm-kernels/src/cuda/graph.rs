//! Work that is recorded once and replayed: small batches spend more time on launches than on arithmetic.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, OnceLock};

use candle_core::cuda::cudarc::driver::sys::{CUgraphInstantiate_flags as Flags, CUstreamCaptureMode as Mode};
use candle_core::cuda::cudarc::driver::{CudaContext, CudaGraph};
use candle_core::{Device, Error, Result, Tensor, bail};

use super::lt::capturing;

/// A recorded function of tensors that stay where they are.
///
/// The function's inputs are whatever tensors it refers to: overwrite them in place ([`Graph::set`]) and
/// [`Graph::replay`]. Shapes, the number of operations and everything that the function reads on the host are as they
/// were when it was recorded; weights are read where they lie, so that updates in place are seen. Record another graph
/// for another shape or budget.
///
/// A graph may be sent to other threads. Recording happens on a thread of its own that lives as long as the process,
/// because what candle keeps of its launches belongs to a thread and would end with it.
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
    context: Arc<CudaContext>,
    /// A replay reads the memory of what the function refers to, so that it must outlive the recording.
    _function: Box<dyn Fn() -> Result<Vec<Tensor>> + Send + 'a>,
}

impl Drop for Graph<'_> {
    fn drop(&mut self) {
        // This thread may never have used the device.
        self.context.bind_to_thread().ok();
    }
}

// Graphs belong to no thread; the driver only asks that no two threads use one at once, and there is no `Sync`.
unsafe impl Send for Graph<'_> {}

/// The thread that records, for all graphs of the process.
fn recorder() -> Result<&'static rayon::ThreadPool> {
    static THREAD: OnceLock<std::result::Result<rayon::ThreadPool, rayon::ThreadPoolBuildError>> = OnceLock::new();
    let build = || rayon::ThreadPoolBuilder::new().num_threads(1).thread_name(|_| "fpdm-graphs".into()).build();
    THREAD.get_or_init(build).as_ref().map_err(|error| Error::Msg(format!("Graph::record: no thread: {error}")))
}

/// Whether work on `device` can be recorded now: it is a GPU that was set up by [`cuda`](super::cuda) with one stream,
/// and no recording is in progress there.
pub fn recordable(device: &Device) -> bool {
    let Device::Cuda(device) = device else { return false };
    let stream = device.cuda_stream();
    // The first handles are the driver's default streams, of which every thread may have another.
    !device.is_event_tracking() && stream.cu_stream().addr() > 2 && !capturing(&stream)
}

impl std::fmt::Debug for Graph<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph").field("outputs", &self.outputs).finish_non_exhaustive()
    }
}

impl<'a> Graph<'a> {
    /// Runs `f` twice, so that kernels are compiled and products tuned, and then records it without running it.
    ///
    /// No other thread may use the device meanwhile: what it does would be recorded too.
    ///
    /// # Errors
    /// If `device` is no GPU that was set up by [`cuda`](super::cuda) with one stream, `f` fails, or it waits for the
    /// device or sends more than a few numbers to it. The device is as it was then.
    pub fn record(device: &Device, f: impl Fn() -> Result<Vec<Tensor>> + Send + 'a) -> Result<Self> {
        let inner = device.as_cuda_device()?;
        if !recordable(device) {
            bail!(
                "Graph::record: the device tracks events, has no stream of its own or is recording; open it with \
                 `fpdm_kernels::cuda::cuda`"
            )
        }
        let recorded = recorder()?.install(|| Self::record_here(device, f));
        if recorded.is_err() {
            // What could not be freed in a recording that failed is no reason for the next operation to fail.
            inner.cuda_stream().context().check_err().ok();
        }
        recorded
    }

    fn record_here(device: &Device, f: impl Fn() -> Result<Vec<Tensor>> + Send + 'a) -> Result<Self> {
        let inner = device.as_cuda_device()?;
        let stream = inner.cuda_stream();
        // What candle sends with its launches is kept on the device, or it could not be recorded.
        let _kept = inner.enable_cuda_graph_htod_cache();
        f()?;
        let outputs: Vec<Tensor> = f()?.iter().map(|t| t.detach().contiguous()?.copy()).collect::<Result<_>>()?;
        device.synchronize()?;
        stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(Error::wrap)?;
        let work = || f()?.iter().zip(&outputs).try_for_each(|(from, to)| Self::set(to, from));
        let recorded = catch_unwind(AssertUnwindSafe(work));
        // The recording must end whatever happened in it. Memory that could not be freed would keep it from ending.
        let freed = stream.context().check_err().map_err(Error::wrap);
        let graph = stream.end_capture(Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH).map_err(Error::wrap);
        recorded.unwrap_or_else(|panic| resume_unwind(panic))?;
        freed?;
        match graph? {
            Some(graph) => Ok(Self { graph, outputs, context: stream.context().clone(), _function: Box::new(f) }),
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

    /// What a replay overwrites, which before the first one is what `f` gave when it was recorded.
    pub fn outputs(&self) -> &[Tensor] {
        &self.outputs
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
