//! All problems of a file at once.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor};

use super::open::Checkpoint;
use crate::{Error, Result};

/// A tensor's name and shape.
pub(crate) type Entry = (String, Vec<usize>);

/// Buffers that some files hold and others leave to be computed: they may be missing or extra, but not misshaped.
const OPTIONAL: [&str; 1] = ["pos_embed"];

/// One line for each tensor that is missing, extra or of another shape.
pub(crate) fn problems(expected: &[Entry], found: &BTreeMap<String, Vec<usize>>) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, shape) in expected {
        match found.get(name) {
            Some(got) if got != shape => problems.push(format!("{name}: expected shape {shape:?}, got {got:?}")),
            None if !OPTIONAL.contains(&name.as_str()) => {
                problems.push(format!("{name} is missing (expected shape {shape:?})"));
            }
            _ => {}
        }
    }
    let known: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).chain(OPTIONAL).collect();
    for (name, shape) in found.iter().filter(|(name, _)| !known.contains(name.as_str())) {
        problems.push(format!("{name} {shape:?} is not part of the model"));
    }
    problems
}

impl Checkpoint {
    /// Whether the file holds exactly these tensors, by name and shape; `pos_embed` may be missing or extra.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that is missing, extra or of another shape.
    pub fn check(&self, expected: &[(String, Vec<usize>)]) -> Result<()> {
        let problems = problems(expected, self.shapes());
        if problems.is_empty() { Ok(()) } else { Err(Error::Weights { origin: self.origin().to_owned(), problems }) }
    }

    /// Whether every element of every tensor is finite.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that holds a NaN or an infinity, and how many.
    pub fn check_finite(&self) -> Result<()> {
        let mut problems = Vec::new();
        for name in self.names() {
            let bad = not_finite(&self.read(name)?)?;
            if bad > 0 {
                problems.push(format!("{name}: {bad} elements are NaN or infinite"));
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::Weights { origin: self.origin().to_owned(), problems }) }
    }
}

fn not_finite(tensor: &Tensor) -> Result<usize> {
    let flat = tensor.flatten_all()?;
    Ok(match flat.dtype() {
        DType::F64 => flat.to_vec1::<f64>()?.iter().filter(|v| !v.is_finite()).count(),
        dtype if dtype.is_float() => {
            flat.to_dtype(DType::F32)?.to_vec1::<f32>()?.iter().filter(|v| !v.is_finite()).count()
        }
        _ => 0,
    })
}
