//! Tensors of a file, handed to a network that says which ones it wants.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use fpdm_core::{Error, Result};

/// Builds a network from tensors. Whatever is missing, misshapen, not a number or left over is reported, all at once.
pub(crate) fn build<T>(
    origin: &str,
    tensors: HashMap<String, Tensor>,
    dtype: DType,
    device: &Device,
    network: impl FnOnce(VarBuilder) -> Result<T>,
) -> Result<T> {
    let strict = Arc::new(Strict { asked: Mutex::default(), problems: Mutex::default(), tensors });
    let vb = VarBuilder::from_backend(Box::new(Handle(strict.clone())), dtype, device.clone());
    let network = network(vb)?;
    let mut problems = std::mem::take(&mut *lock(&strict.problems));
    let asked = lock(&strict.asked);
    let mut extra: Vec<_> = strict.tensors.keys().filter(|name| !asked.contains(*name)).collect();
    extra.sort_unstable();
    problems
        .extend(extra.iter().map(|name| format!("`{name}` has no place in the network that config.json describes")));
    if problems.is_empty() { Ok(network) } else { Err(Error::Weights { origin: origin.to_owned(), problems }) }
}

struct Strict {
    tensors: HashMap<String, Tensor>,
    asked: Mutex<BTreeSet<String>>,
    problems: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

struct Handle(Arc<Strict>);

impl SimpleBackend for Handle {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        lock(&self.0.asked).insert(name.to_owned());
        let problem = match self.0.tensors.get(name) {
            None => format!("`{name}` {:?} is missing", shape.dims()),
            Some(t) if *t.shape() != shape => {
                format!("`{name}`: expected {:?}, got {:?}", shape.dims(), t.dims())
            }
            Some(t) if !t.dtype().is_float() => {
                format!("`{name}`: expected floating point numbers, got {:?}", t.dtype())
            }
            Some(t) => return t.to_device(device)?.to_dtype(dtype),
        };
        lock(&self.0.problems).push(problem);
        // One element seen many times: the network goes on and its other wishes are heard.
        Tensor::zeros(1, dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        match self.0.tensors.get(name) {
            Some(t) => t.to_device(device)?.to_dtype(dtype),
            None => candle_core::bail!("tensor `{name}` is missing"),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.tensors.contains_key(name)
    }
}
