//! A computed result becomes a tensor with a history.

use crate::cpu::simd::Real;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, MetalStorage, Result, Shape, Storage, Tensor,
    bail,
};
use std::sync::Mutex;

/// What a kernel returns: elements that are not a tensor yet.
pub(crate) struct Fresh {
    storage: Storage,
    shape: Shape,
}

impl Fresh {
    pub(crate) fn cpu<T: Real>(data: Vec<T>, shape: impl Into<Shape>) -> Self {
        Self { storage: Storage::Cpu(T::to_cpu_storage_owned(data)), shape: shape.into() }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn cuda(storage: CudaStorage, shape: impl Into<Shape>) -> Self {
        Self { storage: Storage::Cuda(storage), shape: shape.into() }
    }

    /// A copy of a contiguous tensor's elements.
    pub(crate) fn copy_of(storage: &Storage, layout: &Layout) -> Result<Self> {
        let shape = layout.shape().clone();
        let storage = match storage {
            Storage::Cpu(s) => Storage::Cpu(match (s, layout.contiguous_offsets()) {
                (CpuStorage::F32(v), Some((from, to))) => CpuStorage::F32(v[from..to].to_vec()),
                (CpuStorage::F64(v), Some((from, to))) => CpuStorage::F64(v[from..to].to_vec()),
                _ => bail!("no kernels for a tensor of this type and layout"),
            }),
            #[cfg(feature = "cuda")]
            Storage::Cuda(s) => Storage::Cuda(candle_core::backend::BackendStorage::try_clone(s, layout)?),
            _ => bail!("no kernels for a tensor on this device"),
        };
        Ok(Self { storage, shape })
    }

    /// The tensor without a history. Any tensor of the right device will do for `like`.
    pub(crate) fn untracked(self, like: &Tensor) -> Result<Tensor> {
        like.apply_op1_no_bwd(&Recorded::new("fresh", self, |_: [&Tensor; 1], _: &Tensor, _: &Tensor| Ok([None])))
    }
}

/// Gradients for `N` inputs from (inputs, result, gradient of the result).
pub(crate) trait Backward<const N: usize>:
    Fn([&Tensor; N], &Tensor, &Tensor) -> Result<[Option<Tensor>; N]> + Send + Sync + 'static
{
}
impl<const N: usize, F> Backward<N> for F where
    F: Fn([&Tensor; N], &Tensor, &Tensor) -> Result<[Option<Tensor>; N]> + Send + Sync + 'static
{
}

/// Candle records an operation by running it, so this one "runs" by handing out what was computed before.
struct Recorded<F> {
    name: &'static str,
    out: Mutex<Option<Fresh>>,
    backward: F,
}

impl<F> Recorded<F> {
    fn new(name: &'static str, out: Fresh, backward: F) -> Self {
        Self { name, out: Mutex::new(Some(out)), backward }
    }

    fn take(&self) -> Result<Fresh> {
        match self.out.lock().unwrap_or_else(|e| e.into_inner()).take() {
            Some(out) => Ok(out),
            None => bail!("{}: a recorded operation was run twice", self.name),
        }
    }

    fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            Fresh { storage: Storage::Cpu(s), shape } => Ok((s, shape)),
            _ => bail!("{}: result and arguments are on different devices", self.name),
        }
    }

    fn cuda(&self) -> Result<(CudaStorage, Shape)> {
        match self.take()? {
            Fresh { storage: Storage::Cuda(s), shape } => Ok((s, shape)),
            _ => bail!("{}: result and arguments are on different devices", self.name),
        }
    }

    fn metal(&self) -> Result<(MetalStorage, Shape)> {
        match self.take()? {
            Fresh { storage: Storage::Metal(s), shape } => Ok((s, shape)),
            _ => bail!("{}: result and arguments are on different devices", self.name),
        }
    }
}

macro_rules! custom_op {
    ($trait:ident, $n:literal, ($($arg:ident),*), ($($input:ident),*), $grads:ty) => {
        impl<F: Backward<$n>> $trait for Recorded<F> {
            fn name(&self) -> &'static str {
                self.name
            }
            fn cpu_fwd(&self, $($arg: &CpuStorage, $input: &Layout),*) -> Result<(CpuStorage, Shape)> {
                $(let _ = ($arg, $input);)*
                self.cpu()
            }
            fn cuda_fwd(&self, $($arg: &CudaStorage, $input: &Layout),*) -> Result<(CudaStorage, Shape)> {
                $(let _ = ($arg, $input);)*
                self.cuda()
            }
            fn metal_fwd(&self, $($arg: &MetalStorage, $input: &Layout),*) -> Result<(MetalStorage, Shape)> {
                $(let _ = ($arg, $input);)*
                self.metal()
            }
            fn bwd(&self, $($input: &Tensor,)* res: &Tensor, grad: &Tensor) -> Result<$grads> {
                let [$($input),*] = (self.backward)([$($input),*], res, grad)?;
                Ok(($($input),*))
            }
        }
    };
}

custom_op!(CustomOp1, 1, (s1), (t1), Option<Tensor>);
custom_op!(CustomOp2, 2, (s1, s2), (t1, t2), (Option<Tensor>, Option<Tensor>));
custom_op!(CustomOp3, 3, (s1, s2, s3), (t1, t2, t3), (Option<Tensor>, Option<Tensor>, Option<Tensor>));

/// `out` as a function of one tensor.
pub(crate) fn record1(name: &'static str, x: [&Tensor; 1], out: Fresh, backward: impl Backward<1>) -> Result<Tensor> {
    x[0].apply_op1(Recorded::new(name, out, backward))
}

/// `out` as a function of two tensors.
pub(crate) fn record2(name: &'static str, x: [&Tensor; 2], out: Fresh, backward: impl Backward<2>) -> Result<Tensor> {
    x[0].apply_op2(x[1], Recorded::new(name, out, backward))
}

/// `out` as a function of three tensors.
pub(crate) fn record3(name: &'static str, x: [&Tensor; 3], out: Fresh, backward: impl Backward<3>) -> Result<Tensor> {
    x[0].apply_op3(x[1], x[2], Recorded::new(name, out, backward))
}

/// The gradient if anyone wants it. `None` is only safe for a tensor that candle does not track.
pub(crate) fn wanted(arg: &Tensor, gradient: impl FnOnce() -> Result<Tensor>) -> Result<Option<Tensor>> {
    if arg.track_op() { gradient().map(Some) } else { Ok(None) }
}
