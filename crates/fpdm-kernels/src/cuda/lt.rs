//! Matrix products by cuBLASLt, with what follows a product done before it is written.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda::cudarc::cublaslt::result;
use candle_core::cuda::cudarc::cublaslt::sys::{
    self, cublasComputeType_t as Compute, cublasLtEpilogue_t as Ep, cublasLtMatmulDescAttributes_t as Desc,
    cublasLtMatmulHeuristicResult_t as Found, cublasLtMatmulPreferenceAttributes_t as Pref, cublasStatus_t as Status,
    cudaDataType_t as Type,
};
use candle_core::cuda::cudarc::driver::sys::CUevent_flags;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use candle_core::{CudaDevice, DType, Error, Result};

use super::convert::data_type;

/// What Hopper's kernels ask for.
const WORKSPACE: usize = 32 << 20;

/// A row-major factor: its address, the distance of its rows, and whether it is taken transposed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Factor {
    pub(super) ptr: u64,
    pub(super) stride: usize,
    pub(super) transposed: bool,
}

/// What happens to a product before it is written. Addresses are of the factors' type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Epilogue {
    Nothing,
    /// Adds a row to every row.
    Bias(u64),
    /// GELU (tanh), after a bias if there is one; the argument is stored too if there is a place for it.
    Gelu {
        bias: Option<u64>,
        argument: Option<u64>,
    },
}

/// `out = epilogue(left · right + beta · add)`, all row-major: left (m, k), right (k, n), out (m, n) with rows `stride`
/// apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) left: Factor,
    pub(super) right: Factor,
    pub(super) out: u64,
    pub(super) stride: usize,
    /// Of the factors.
    pub(super) dtype: DType,
    /// Of the result.
    pub(super) out_dtype: DType,
    /// Added before the epilogue: address and distance of rows. It may be the result itself.
    pub(super) add: Option<(u64, usize)>,
    pub(super) epilogue: Epilogue,
}

/// All that the choice of an algorithm depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    sizes: [usize; 3],
    strides: [usize; 4],
    transposed: [bool; 2],
    dtypes: [DType; 2],
    epilogue: u32,
    add: bool,
    alignment: [u32; 4],
    compute: u32,
}

struct Plan {
    desc: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    c: sys::cublasLtMatrixLayout_t,
    d: sys::cublasLtMatrixLayout_t,
    algo: sys::cublasLtMatmulAlgo_t,
}

pub(super) struct Lt {
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    /// `None` where the library has no algorithm.
    plans: Mutex<HashMap<Key, Option<Plan>>>,
}

// The library's handle may be used by all threads; descriptors are behind the lock.
unsafe impl Send for Lt {}
unsafe impl Sync for Lt {}

impl Epilogue {
    fn kind(&self) -> Ep {
        match self {
            Self::Nothing => Ep::CUBLASLT_EPILOGUE_DEFAULT,
            Self::Bias(_) => Ep::CUBLASLT_EPILOGUE_BIAS,
            Self::Gelu { bias: None, argument: None } => Ep::CUBLASLT_EPILOGUE_GELU,
            Self::Gelu { bias: Some(_), argument: None } => Ep::CUBLASLT_EPILOGUE_GELU_BIAS,
            Self::Gelu { bias: None, argument: Some(_) } => Ep::CUBLASLT_EPILOGUE_GELU_AUX,
            Self::Gelu { bias: Some(_), argument: Some(_) } => Ep::CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
        }
    }

    fn bias(&self) -> Option<u64> {
        match *self {
            Self::Bias(p) => Some(p),
            Self::Gelu { bias, .. } => bias,
            _ => None,
        }
    }

    fn argument(&self) -> Option<u64> {
        match *self {
            Self::Gelu { argument, .. } => argument,
            _ => None,
        }
    }
}

impl Lt {
    pub(super) fn new(device: &CudaDevice) -> Result<Self> {
        let handle = result::create_handle().map_err(Error::wrap)?;
        let workspace = unsafe { device.alloc::<u8>(WORKSPACE)? };
        Ok(Self { handle, workspace, plans: Mutex::default() })
    }

    /// Enqueues the product; `false` where the library cannot do it, and nothing was enqueued.
    pub(super) fn multiply(&self, stream: &Arc<CudaStream>, p: &Product) -> Result<bool> {
        let key = self.key(p);
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.entry(key) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(place) => place.insert(self.plan(stream, p, &key)?),
        };
        let Some(plan) = plan else { return Ok(false) };
        self.point(plan, p)?;
        self.run(stream, p, plan, &plan.algo).map_err(Error::wrap)?;
        Ok(true)
    }

    fn key(&self, p: &Product) -> Key {
        let alignment = |ptr: u64, stride: usize, dtype: DType| {
            let row = (stride * dtype.size_in_bytes()) as u64;
            1u32 << (ptr | row | 256).trailing_zeros()
        };
        let (add, add_stride) = p.add.unwrap_or((p.out, p.stride));
        let compute = match p.dtype {
            DType::F32 if candle_core::cuda_backend::gemm_reduced_precision_f32() => {
                Compute::CUBLAS_COMPUTE_32F_FAST_TF32
            }
            _ => Compute::CUBLAS_COMPUTE_32F,
        };
        Key {
            sizes: [p.m, p.n, p.k],
            strides: [p.left.stride, p.right.stride, p.stride, add_stride],
            transposed: [p.left.transposed, p.right.transposed],
            dtypes: [p.dtype, p.out_dtype],
            epilogue: p.epilogue.kind() as u32,
            add: p.add.is_some(),
            alignment: [
                alignment(p.left.ptr, p.left.stride, p.dtype),
                alignment(p.right.ptr, p.right.stride, p.dtype),
                alignment(add, add_stride, p.out_dtype),
                alignment(p.out, p.stride, p.out_dtype),
            ],
            compute: compute as u32,
        }
    }

    /// The library counts columns where we count rows: it is asked for the transposed product, right times left.
    fn plan(&self, stream: &Arc<CudaStream>, p: &Product, key: &Key) -> Result<Option<Plan>> {
        let (data, out) = (data_type(p.dtype)?, data_type(p.out_dtype)?);
        let compute = match key.compute {
            c if c == Compute::CUBLAS_COMPUTE_32F_FAST_TF32 as u32 => Compute::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => Compute::CUBLAS_COMPUTE_32F,
        };
        let layout = |kind: Type, transposed: bool, rows: usize, cols: usize, stride: usize| {
            let (rows, cols) = if transposed { (cols, rows) } else { (rows, cols) };
            result::create_matrix_layout(kind, cols as u64, rows as u64, stride as i64).map_err(Error::wrap)
        };
        let desc = result::create_matmul_desc(compute, Type::CUDA_R_32F).map_err(Error::wrap)?;
        let mut plan = Plan {
            desc,
            a: layout(data, p.right.transposed, p.k, p.n, p.right.stride)?,
            b: layout(data, p.left.transposed, p.m, p.k, p.left.stride)?,
            c: layout(out, false, p.m, p.n, key.strides[3])?,
            d: layout(out, false, p.m, p.n, p.stride)?,
            algo: unsafe { std::mem::zeroed() },
        };
        set(desc, Desc::CUBLASLT_MATMUL_DESC_TRANSA, &i32::from(p.right.transposed))?;
        set(desc, Desc::CUBLASLT_MATMUL_DESC_TRANSB, &i32::from(p.left.transposed))?;
        set(desc, Desc::CUBLASLT_MATMUL_DESC_EPILOGUE, &key.epilogue)?;
        if p.epilogue.argument().is_some() {
            set(desc, Desc::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &(p.n as i64))?;
        }
        self.point(&plan, p)?;
        let found = self.candidates(&plan, key)?;
        match self.fastest(stream, p, &plan, &found)? {
            Some(algo) => {
                plan.algo = algo;
                Ok(Some(plan))
            }
            None => {
                plan.destroy();
                Ok(None)
            }
        }
    }

    fn candidates(&self, plan: &Plan, key: &Key) -> Result<Vec<Found>> {
        const MOST: usize = 32;
        let preference = result::create_matmul_pref().map_err(Error::wrap)?;
        let put = |attribute: Pref, value: *const c_void, size: usize| unsafe {
            result::set_matmul_pref_attribute(preference, attribute, value, size).map_err(Error::wrap)
        };
        let workspace = WORKSPACE;
        put(Pref::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const workspace).cast(), size_of::<usize>())?;
        let [left, right, add, out] = &key.alignment;
        for (attribute, value) in [
            (Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, right),
            (Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, left),
            (Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, add),
            (Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out),
        ] {
            put(attribute, (&raw const *value).cast(), size_of::<u32>())?;
        }
        let mut found: [Found; MOST] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                plan.desc,
                plan.a,
                plan.b,
                plan.c,
                plan.d,
                preference,
                MOST as i32,
                found.as_mut_ptr(),
                &mut count,
            )
        };
        unsafe { result::destroy_matmul_pref(preference) }.map_err(Error::wrap)?;
        match status {
            Status::CUBLAS_STATUS_SUCCESS => {}
            Status::CUBLAS_STATUS_NOT_SUPPORTED => count = 0,
            other => candle_core::bail!("cuBLASLt: {other:?} for {key:?}"),
        }
        let usable = |f: &&Found| f.state == Status::CUBLAS_STATUS_SUCCESS && f.workspaceSize <= WORKSPACE;
        Ok(found[..count as usize].iter().filter(usable).copied().collect())
    }

    /// The library's order is a guess: the candidates are timed, unless that would spoil a recording. What adds to its own
    /// result is timed in other memory.
    fn fastest(
        &self,
        stream: &Arc<CudaStream>,
        p: &Product,
        plan: &Plan,
        found: &[Found],
    ) -> Result<Option<sys::cublasLtMatmulAlgo_t>> {
        let Some(first) = found.first() else { return Ok(None) };
        let still = std::env::var_os("FPDM_NO_TUNING").is_some() || capturing(stream);
        if found.len() == 1 || still {
            return Ok(Some(first.algo));
        }
        let bytes = p.m * p.stride * p.out_dtype.size_in_bytes();
        let own = p.add.is_some_and(|(add, _)| add == p.out);
        let room = if own { unsafe { stream.alloc::<u8>(bytes) }.ok() } else { None };
        if own && room.is_none() {
            // No memory to try in is no reason not to multiply.
            return Ok(Some(first.algo));
        }
        let elsewhere = room.as_ref().map(|room| room.device_ptr(stream).0);
        let tried = elsewhere.map_or(*p, |out| Product { out, add: Some((out, p.stride)), ..*p });
        let p = &tried;
        let context = stream.context();
        let event = || context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(Error::wrap);
        let mut best = (f32::INFINITY, first.algo);
        for candidate in found {
            if self.run(stream, p, plan, &candidate.algo).is_err() {
                continue;
            }
            let mut least = f32::INFINITY;
            for _ in 0..3 {
                let (start, end) = (event()?, event()?);
                start.record(stream).map_err(Error::wrap)?;
                for _ in 0..2 {
                    self.run(stream, p, plan, &candidate.algo).map_err(Error::wrap)?;
                }
                end.record(stream).map_err(Error::wrap)?;
                least = least.min(start.elapsed_ms(&end).map_err(Error::wrap)?);
                if least > 1.25 * best.0 {
                    break;
                }
            }
            // Ties go to the library's order, so that equal choices are made more often.
            if least < 0.98 * best.0 {
                best = (least, candidate.algo);
            }
        }
        Ok(Some(best.1))
    }

    fn point(&self, plan: &Plan, p: &Product) -> Result<()> {
        if let Some(bias) = p.epilogue.bias() {
            set(plan.desc, Desc::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        if let Some(argument) = p.epilogue.argument() {
            set(plan.desc, Desc::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &argument)?;
        }
        Ok(())
    }

    fn run(
        &self,
        stream: &CudaStream,
        p: &Product,
        plan: &Plan,
        algo: &sys::cublasLtMatmulAlgo_t,
    ) -> std::result::Result<(), result::CublasError> {
        let (alpha, beta) = (1f32, if p.add.is_some() { 1f32 } else { 0. });
        let workspace = self.workspace.device_ptr(stream).0;
        unsafe {
            result::matmul(
                self.handle,
                plan.desc,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                p.right.ptr as *const c_void,
                plan.a,
                p.left.ptr as *const c_void,
                plan.b,
                p.add.map_or(p.out, |(ptr, _)| ptr) as *const c_void,
                plan.c,
                p.out as *mut c_void,
                plan.d,
                algo,
                workspace as *mut c_void,
                WORKSPACE,
                stream.cu_stream().cast(),
            )
        }
    }
}

impl Plan {
    fn destroy(&self) {
        unsafe {
            for layout in [self.a, self.b, self.c, self.d] {
                result::destroy_matrix_layout(layout).ok();
            }
            result::destroy_matmul_desc(self.desc).ok();
        }
    }
}

impl Drop for Lt {
    fn drop(&mut self) {
        for plan in self.plans.get_mut().unwrap_or_else(PoisonError::into_inner).values().flatten() {
            plan.destroy();
        }
        unsafe { result::destroy_handle(self.handle) }.ok();
    }
}

/// Whether work is being recorded instead of done.
pub(super) fn capturing(stream: &CudaStream) -> bool {
    use candle_core::cuda::cudarc::driver::sys::CUstreamCaptureStatus as Capture;
    !matches!(stream.capture_status(), Ok(Capture::CU_STREAM_CAPTURE_STATUS_NONE))
}

fn set<T>(desc: sys::cublasLtMatmulDesc_t, attribute: Desc, value: &T) -> Result<()> {
    unsafe { result::set_matmul_desc_attribute(desc, attribute, (&raw const *value).cast(), size_of::<T>()) }
        .map_err(Error::wrap)
}
