//! The one place that decides which implementation of an operation runs.

use candle_core::{DType, Device, Result, Tensor};

/// How an operation is carried out.
pub(crate) enum Route {
    /// The kernels of [`crate::cpu`], in the tensors' own type.
    Cpu,
    /// The same kernels on `f32` copies: half precision has no arithmetic of its own here.
    Widened,
    /// The kernels of `cuda`, in the tensors' own type.
    #[cfg(feature = "cuda")]
    Cuda,
    /// Candle's own operations: every device, type and size without kernels in this crate.
    Composed,
}

/// The route of an operation whose arguments have passed the checks and so agree in device and type.
pub(crate) fn route(x: &Tensor) -> Route {
    match (x.device(), x.dtype()) {
        (Device::Cpu, DType::F32 | DType::F64) if x.elem_count() > 0 => Route::Cpu,
        (Device::Cpu, DType::F16 | DType::BF16) => Route::Widened,
        #[cfg(feature = "cuda")]
        (Device::Cuda(_), DType::F32 | DType::F16 | DType::BF16) if x.elem_count() > 0 => Route::Cuda,
        _ => Route::Composed,
    }
}

/// Runs `op` on `f32` copies of its arguments and converts the result back.
pub(crate) fn widened<const N: usize>(
    args: [&Tensor; N],
    op: impl FnOnce([Tensor; N]) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut wide = args.map(Tensor::clone);
    for t in &mut wide {
        *t = t.to_dtype(DType::F32)?;
    }
    op(wide)?.to_dtype(args[0].dtype())
}

/// Calls a function that is generic over the element type with the type of a tensor.
macro_rules! by_dtype {
    ($t:expr, $f:ident($($arg:expr),* $(,)?)) => {
        match $t.dtype() {
            candle_core::DType::F64 => $f::<f64>($($arg),*),
            _ => $f::<f32>($($arg),*),
        }
    };
}
pub(crate) use by_dtype;
