//! How a program prepares a GPU, once.

use candle_core::cuda::cudarc::driver::{result, sys};
use candle_core::{CudaDevice, Device, Error, Result, cuda_backend};

/// Whether f32 matrix products may round their factors to 10 bits of mantissa, on the tensor cores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tf32 {
    /// Exact f32 factors: some ten times slower on recent GPUs.
    #[default]
    Off,
    /// Rounded factors, f32 sums: relative errors of about 3e-4.
    On,
}

/// What [`cuda`] sets up. `Default` is what this workspace's commands use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cuda {
    /// Precision of f32 products, for the whole process.
    pub tf32: Tf32,
    /// Freed memory stays with the process instead of going back at every synchronisation.
    pub keep_memory: bool,
    /// Candle's events, which order several streams, are left out: there is one stream.
    pub single_stream: bool,
}

impl Default for Cuda {
    fn default() -> Self {
        Self { tf32: Tf32::Off, keep_memory: true, single_stream: true }
    }
}

/// GPU number `index`, set up for networks: one stream for all threads, no event tracking, memory kept.
///
/// `Device::new_cuda` gives every thread a stream of its own without order between them, creates two events with every
/// tensor, and returns freed memory to the system whenever the host waits; each costs time that shows. Call this once a
/// GPU and share the device. Candle's own constructor works with all operations here too: that is the way out.
///
/// # Errors
/// If there is no such GPU or driver.
pub fn cuda(index: usize, how: Cuda) -> Result<Device> {
    let device = Device::new_cuda_with_stream(index)?;
    let inner = device.as_cuda_device()?;
    cuda_backend::set_gemm_reduced_precision_f32(how.tf32 == Tf32::On);
    if how.single_stream {
        // Sound because every tensor of this device is made and used on its one stream.
        unsafe { inner.disable_event_tracking() };
    }
    if how.keep_memory {
        attribute(inner, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)?;
    }
    Ok(device)
}

fn pool(device: &CudaDevice) -> Result<sys::CUmemoryPool> {
    let stream = device.cuda_stream();
    let context = stream.context();
    context.bind_to_thread().map_err(Error::wrap)?;
    unsafe { result::device::get_default_mem_pool(context.cu_device()) }.map_err(Error::wrap)
}

fn attribute(device: &CudaDevice, attribute: sys::CUmemPool_attribute, mut value: u64) -> Result<()> {
    let pool = pool(device)?;
    unsafe { result::mem_pool::set_attribute(pool, attribute, (&raw mut value).cast()) }.map_err(Error::wrap)
}

/// The most device memory that tensors have taken at once since the start or [`reset_peak`], in bytes.
///
/// Libraries' own memory (kernels, workspaces of cuBLAS) is not in it. `None` where `device` is no GPU of this kind.
pub fn peak_bytes(device: &Device) -> Option<u64> {
    let pool = pool(device.as_cuda_device().ok()?).ok()?;
    let mut value = 0u64;
    let high = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    unsafe { result::mem_pool::get_attribute(pool, high, (&raw mut value).cast()) }.ok()?;
    Some(value)
}

/// Starts [`peak_bytes`] again from what is in use now.
///
/// # Errors
/// If the driver refuses.
pub fn reset_peak(device: &Device) -> Result<()> {
    attribute(device.as_cuda_device()?, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0)
}
