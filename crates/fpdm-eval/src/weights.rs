//! The tensors of a file, taken one by one by a network.

use std::collections::{BTreeSet, HashMap};

use candle_core::{DType, Device, Tensor};
use fpdm_core::{Error, Result};

/// Collects whatever is missing, misshapen or left over, to be reported all at once.
pub(crate) struct Weights {
    origin: String,
    tensors: HashMap<String, Tensor>,
    problems: Vec<String>,
    taken: BTreeSet<String>,
}

impl Weights {
    /// `origin` is for messages.
    pub(crate) fn new(origin: &str, tensors: HashMap<String, Tensor>) -> Self {
        Self { origin: origin.to_owned(), tensors, problems: Vec::new(), taken: BTreeSet::new() }
    }

    /// The size of a tensor along its first dimension, before anything is known of the network.
    pub(crate) fn outputs(&self, name: &str) -> Option<usize> {
        self.tensors.get(name)?.dims().first().copied()
    }

    /// The tensor, in f64 on the CPU; zeros if it cannot be had, so that the network asks on.
    pub(crate) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.taken.insert(name.to_owned());
        let problem = match self.tensors.get(name) {
            None => format!("`{name}` {shape:?} is missing"),
            Some(t) if t.dims() != shape => format!("`{name}`: expected {shape:?}, got {:?}", t.dims()),
            Some(t) if !t.dtype().is_float() => {
                format!("`{name}`: expected floating point numbers, got {:?}", t.dtype())
            }
            Some(t) => {
                let t = t.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
                // A sum shows every NaN and infinity.
                if shape.contains(&0) || t.sum_all()?.to_scalar::<f64>()?.is_finite() {
                    return Ok(t);
                }
                format!("`{name}` holds numbers that are not finite")
            }
        };
        self.problems.push(problem);
        Ok(Tensor::zeros(shape, DType::F64, &Device::Cpu)?)
    }

    /// The end: nothing may be left but what `unused` knows.
    pub(crate) fn finish(mut self, unused: impl Fn(&str) -> bool) -> Result<()> {
        let mut extra: Vec<_> =
            self.tensors.keys().filter(|name| !self.taken.contains(*name) && !unused(name)).collect();
        extra.sort_unstable();
        self.problems.extend(extra.iter().map(|name| format!("`{name}` has no place in the network")));
        if self.problems.is_empty() {
            Ok(())
        } else {
            Err(Error::Weights { origin: self.origin, problems: self.problems })
        }
    }
}
