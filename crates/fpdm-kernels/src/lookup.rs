//! Rows of a table.

use candle_core::{DType, Result, Tensor, bail};

use crate::dispatch::route;

/// The rows of `table` (V, D) that `index` (B) in u32 names, (B, D): an embedding.
///
/// Differentiable in the table. Indices are taken as they are: check them first, on a GPU one that is out of range reads
/// foreign memory.
///
/// # Errors
/// If shapes or types do not fit.
pub fn lookup(table: &Tensor, index: &Tensor) -> Result<Tensor> {
    if table.rank() != 2 || index.rank() != 1 || index.dtype() != DType::U32 {
        let got = (table.dims(), index.dims(), index.dtype());
        bail!("lookup: expected `table` (V, D) and `index` (B) in u32, got {got:?}")
    }
    match route(table) {
        // Candle adds the gradient up in one block.
        #[cfg(feature = "cuda")]
        crate::dispatch::Route::Cuda if table.dims()[0] <= crate::cuda::LOOKUPS => crate::cuda::lookup(table, index),
        _ => table.index_select(index, 0),
    }
}

/// [`lookup`] in candle's operations.
///
/// # Errors
/// If shapes or types do not fit.
pub fn composed(table: &Tensor, index: &Tensor) -> Result<Tensor> {
    table.index_select(index, 0)
}
