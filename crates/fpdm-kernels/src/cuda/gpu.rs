//! What is kept for each device: loaded kernels and the matrix library.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use candle_core::cuda::cudarc::driver::sys::{
    CUdevice_attribute_enum as Device, CUfunction_attribute_enum as Attribute,
};
use candle_core::cuda::cudarc::driver::{CudaFunction, CudaStream, LaunchConfig, PushKernelArg};
use candle_core::cuda::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::DeviceId;
use candle_core::{CudaDevice, DType, Error, Result};

use super::compile::cubin;
use super::lt::Lt;

/// A source file. Its functions are compiled together, once a [`Variant`].
pub(super) struct Source {
    pub(super) name: &'static str,
    pub(super) text: &'static str,
    /// Uses what only its own compute capability has (`sm_90a`), and newer ones lack.
    pub(super) own: bool,
}

/// What is fixed when a source is compiled; 0 where a source does not ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    pub(super) dtype: DType,
    /// Elements of one access.
    pub(super) vec: usize,
    /// Packs of a row for each lane.
    pub(super) steps: usize,
    /// The size of an attention head.
    pub(super) head: usize,
}

impl Variant {
    fn defines(&self) -> Result<Vec<String>> {
        let dtype = match self.dtype {
            DType::BF16 => "BF16",
            DType::F16 => "F16",
            DType::F32 => "F32",
            other => candle_core::bail!("no CUDA kernels for {other:?}"),
        };
        let numbers = [("VEC", self.vec), ("STEPS", self.steps), ("HEAD", self.head)];
        let numbers = numbers.iter().filter(|(_, value)| *value > 0).map(|(name, value)| format!("{name}={value}"));
        Ok(std::iter::once(dtype.to_owned()).chain(numbers).collect())
    }
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arg {
    Ptr(u64),
    Int(i32),
    Long(i64),
    Float(f32),
}

type Functions = HashMap<(&'static str, Variant), CudaFunction>;

pub(super) struct Gpu {
    pub(super) stream: Arc<CudaStream>,
    pub(super) lt: Lt,
    /// Compute capability.
    pub(super) arch: (i32, i32),
    /// Multiprocessors.
    pub(super) processors: usize,
    /// The most shared memory of a block, in bytes.
    pub(super) shared: usize,
    functions: RwLock<Functions>,
    /// One compilation at a time.
    compiling: Mutex<()>,
}

type Gpus = RwLock<HashMap<DeviceId, Arc<Gpu>>>;

/// What is kept for `device`, made at its first use.
pub(super) fn gpu(device: &CudaDevice) -> Result<Arc<Gpu>> {
    static GPUS: OnceLock<Gpus> = OnceLock::new();
    let all = GPUS.get_or_init(Gpus::default);
    if let Some(gpu) = all.read().unwrap_or_else(PoisonError::into_inner).get(&device.id()) {
        return Ok(gpu.clone());
    }
    let stream = device.cuda_stream();
    let ask =
        |what: Device| -> Result<usize> { Ok(stream.context().attribute(what).map_err(Error::wrap)?.max(1) as usize) };
    let gpu = Arc::new(Gpu {
        processors: ask(Device::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared: ask(Device::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        arch: stream.context().compute_capability().map_err(Error::wrap)?,
        lt: Lt::new(device)?,
        stream,
        functions: RwLock::default(),
        compiling: Mutex::default(),
    });
    Ok(all.write().unwrap_or_else(PoisonError::into_inner).entry(device.id()).or_insert(gpu).clone())
}

impl Gpu {
    fn function(&self, source: &Source, name: &'static str, variant: Variant) -> Result<CudaFunction> {
        let find = || {
            let all = self.functions.read().unwrap_or_else(PoisonError::into_inner);
            all.get(&(name, variant)).cloned()
        };
        if let Some(function) = find() {
            return Ok(function);
        }
        let _one = self.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = find() {
            return Ok(function);
        }
        let code = cubin(source, &variant.defines()?, self.arch)?;
        let module = self.stream.context().load_module(Ptx::from_binary(code)).map_err(Error::wrap)?;
        let function = module.load_function(name).map_err(Error::wrap)?;
        self.functions.write().unwrap_or_else(PoisonError::into_inner).insert((name, variant), function.clone());
        Ok(function)
    }

    /// Enqueues `name` of `source`.
    ///
    /// Arguments must fit the kernel, and what they point to must stay allocated until the stream has passed: memory is
    /// freed in stream order, so that holding it until this returns is enough.
    pub(super) fn launch(
        &self,
        (source, name, variant): (&Source, &'static str, Variant),
        (grid, block): ((usize, usize, usize), (u32, u32, u32)),
        shared: usize,
        args: &[Arg],
    ) -> Result<()> {
        let function = self.function(source, name, variant)?;
        let size = |n: usize| u32::try_from(n).map_err(|_| Error::Msg(format!("{name}: {n} blocks are too many")));
        let config = LaunchConfig {
            grid_dim: (size(grid.0)?, size(grid.1)?, size(grid.2)?),
            block_dim: block,
            shared_mem_bytes: size(shared)?,
        };
        // Beyond this a block must ask.
        if shared > 48 << 10 {
            let most = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, shared as i32).map_err(Error::wrap)?;
        }
        let mut launch = self.stream.launch_builder(&function);
        for arg in args {
            match arg {
                Arg::Ptr(p) => launch.arg(p),
                Arg::Int(i) => launch.arg(i),
                Arg::Long(l) => launch.arg(l),
                Arg::Float(f) => launch.arg(f),
            };
        }
        // The callers' part of the bargain is in the documentation of each.
        unsafe { launch.launch(config) }.map_err(Error::wrap)?;
        Ok(())
    }
}

/// A count as kernels take it.
pub(super) fn int(n: usize) -> Result<Arg> {
    i32::try_from(n).map(Arg::Int).map_err(|_| Error::Msg(format!("{n} is more than a kernel counts")))
}
