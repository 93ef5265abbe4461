//! The library's names of types.

use candle_core::cuda::cudarc::cublaslt::sys::cudaDataType_t as Type;
use candle_core::{DType, Result, bail};

pub(super) fn data_type(dtype: DType) -> Result<Type> {
    match dtype {
        DType::BF16 => Ok(Type::CUDA_R_16BF),
        DType::F16 => Ok(Type::CUDA_R_16F),
        DType::F32 => Ok(Type::CUDA_R_32F),
        other => bail!("no CUDA matrix product for {other:?}"),
    }
}
