//! What all file formats have in common.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::{Error, Result};

/// Named tensors on disk.
pub(crate) trait Container: Send + Sync {
    /// Names and shapes, of everything in it.
    fn shapes(&self) -> &BTreeMap<String, Vec<usize>>;

    /// A tensor on the CPU in the dtype it is stored in.
    fn read(&self, name: &str) -> Result<Tensor>;
}

/// A single problem of a file.
pub(crate) fn broken(origin: impl std::fmt::Display, problem: impl Into<String>) -> Error {
    Error::Weights { origin: origin.to_string(), problems: vec![problem.into()] }
}
