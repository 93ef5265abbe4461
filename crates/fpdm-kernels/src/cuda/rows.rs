//! Tensors as kernels see them: addresses and rows.

use candle_core::cuda::cudarc::driver::DevicePtr;
use candle_core::cuda_backend::CudaStorageSlice as Slice;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Result, Shape, Storage, Tensor, bail};
use half::{bf16, f16};

use crate::record::Fresh;

/// The device of a tensor that is known to be on one.
pub(super) fn device(t: &Tensor) -> Result<CudaDevice> {
    match t.device() {
        Device::Cuda(device) => Ok(device.clone()),
        other => bail!("a CUDA kernel was given a tensor on {:?}", other.location()),
    }
}

/// A matrix in device memory: `rows` of `width` neighbouring elements, `stride` apart. Holds the tensor.
pub(super) struct Rows {
    _tensor: Tensor,
    pub(super) ptr: u64,
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) stride: usize,
}

impl Rows {
    /// All dimensions but the last are rows. A matrix with a distance between its rows is taken as it is, everything
    /// else that is not contiguous is copied.
    pub(super) fn new(t: &Tensor) -> Result<Self> {
        let width = t.dims().last().copied().unwrap_or(1);
        let strided = t.rank() == 2 && t.stride()[1] == 1 && t.stride()[0] >= width;
        let tensor = if strided { t.clone() } else { t.contiguous()? };
        let stride = if strided { t.stride()[0] } else { width };
        Ok(Self { ptr: address(&tensor)?, rows: t.elem_count() / width.max(1), width, stride, _tensor: tensor })
    }

    /// All elements one after the other.
    pub(super) fn dense(t: &Tensor) -> Result<Self> {
        Self::new(&t.contiguous()?).map(|mut rows| {
            rows.stride = rows.width;
            rows
        })
    }

    /// Whether every row starts at a multiple of `bytes`, in elements of `dtype`.
    pub(super) fn aligned(&self, dtype: DType, bytes: usize) -> bool {
        self.ptr.is_multiple_of(bytes as u64)
            && (self.width * dtype.size_in_bytes()).is_multiple_of(bytes)
            && (self.stride * dtype.size_in_bytes()).is_multiple_of(bytes)
    }
}

/// Elements of one access: 16 bytes if all rows allow it, one element otherwise.
pub(super) fn vec(dtype: DType, rows: &[&Rows]) -> usize {
    if rows.iter().all(|r| r.aligned(dtype, 16)) { 16 / dtype.size_in_bytes() } else { 1 }
}

/// Where a tensor's first element is.
pub(super) fn address(t: &Tensor) -> Result<u64> {
    let (storage, layout) = t.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { bail!("a CUDA kernel was given a tensor that is elsewhere") };
    let stream = storage.device.cuda_stream();
    let base = match &storage.slice {
        Slice::BF16(s) => s.device_ptr(&stream).0,
        Slice::F16(s) => s.device_ptr(&stream).0,
        Slice::F32(s) => s.device_ptr(&stream).0,
        Slice::F64(s) => s.device_ptr(&stream).0,
        Slice::U8(s) => s.device_ptr(&stream).0,
        Slice::U32(s) => s.device_ptr(&stream).0,
        Slice::I64(s) => s.device_ptr(&stream).0,
        _ => bail!("no CUDA kernels for {:?}", t.dtype()),
    };
    Ok(base + (layout.start_offset() * t.dtype().size_in_bytes()) as u64)
}

/// The number 0 of a floating point type.
pub(crate) fn zero(like: &Tensor) -> Result<Fresh> {
    let device = device(like)?;
    let storage = match like.dtype() {
        DType::BF16 => CudaStorage::wrap_cuda_slice(device.alloc_zeros::<bf16>(1)?, device.clone()),
        DType::F16 => CudaStorage::wrap_cuda_slice(device.alloc_zeros::<f16>(1)?, device.clone()),
        DType::F32 => CudaStorage::wrap_cuda_slice(device.alloc_zeros::<f32>(1)?, device.clone()),
        other => bail!("no CUDA kernels for {other:?}"),
    };
    Ok(Fresh::cuda(storage, ()))
}

/// Memory for a result. Every element must be written.
pub(super) struct Out {
    storage: CudaStorage,
    pub(super) ptr: u64,
}

impl Out {
    pub(super) fn new(device: &CudaDevice, dtype: DType, elements: usize) -> Result<Self> {
        let stream = device.cuda_stream();
        macro_rules! alloc {
            ($t:ty) => {{
                let slice = unsafe { device.alloc::<$t>(elements)? };
                let ptr = slice.device_ptr(&stream).0;
                (CudaStorage::wrap_cuda_slice(slice, device.clone()), ptr)
            }};
        }
        let (storage, ptr) = match dtype {
            DType::BF16 => alloc!(bf16),
            DType::F16 => alloc!(f16),
            DType::F32 => alloc!(f32),
            other => bail!("no CUDA kernels for {other:?}"),
        };
        Ok(Self { storage, ptr })
    }

    pub(super) fn fresh(self, shape: impl Into<Shape>) -> Fresh {
        Fresh::cuda(self.storage, shape)
    }
}
