//! Parameters in memory: a [`VarMap`] as a frozen view, in a fixed order, from and to disk.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::PoisonError;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};

use crate::checkpoint::{Checkpoint, Container, Entry, Safetensors, problems, write_safetensors};
use crate::{Error, Result};

/// The variables by name, sorted: [`VarMap`] itself has another order in every process.
pub fn named(vars: &VarMap) -> Vec<(String, Var)> {
    let data = vars.data().lock().unwrap_or_else(PoisonError::into_inner);
    let sorted: BTreeMap<&String, &Var> = data.iter().collect();
    sorted.into_iter().map(|(name, var)| (name.clone(), var.clone())).collect()
}

/// The names, sorted.
pub fn names(vars: &VarMap) -> Vec<String> {
    named(vars).into_iter().map(|(name, _)| name).collect()
}

/// A builder over the same storage, without gradients: the network it builds sees every update of the variables
/// and records no graph.
///
/// # Errors
/// [`Error::Shape`] if the variables differ in dtype or device: a cast would be a copy that sees no update.
pub fn frozen(vars: &VarMap) -> Result<VarBuilder<'static>> {
    let mut kind: Option<(DType, Device)> = None;
    let mut tensors = HashMap::new();
    for (name, var) in named(vars) {
        let (dtype, device) = kind.get_or_insert_with(|| (var.dtype(), var.device().clone()));
        if var.dtype() != *dtype || !var.device().same_device(device) {
            return Err(Error::shape(
                format!("dtype and device of {name} in a frozen view"),
                (*dtype, device.location()),
                (var.dtype(), var.device().location()),
            ));
        }
        tensors.insert(name, var.as_detached_tensor());
    }
    let (dtype, device) = kind.unwrap_or((DType::F32, Device::Cpu));
    Ok(VarBuilder::from_tensors(tensors, dtype, &device))
}

/// Writes all variables as safetensors; the file is whole or not there.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be written to.
pub fn save(vars: &VarMap, path: impl AsRef<Path>) -> Result<()> {
    let tensors: Vec<(String, Tensor)> =
        named(vars).into_iter().map(|(name, var)| (name, var.as_detached_tensor())).collect();
    write_safetensors(path, &tensors)
}

/// Sets all variables from a safetensors file with the same names, in the dtype and on the device of each variable.
///
/// # Errors
/// [`Error::Weights`] with every tensor that is missing, extra or of another shape; no variable is set then.
pub fn load(vars: &VarMap, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let file = Safetensors::open(&[path])?;
    set(vars, &path.display().to_string(), file.shapes(), |name| file.read(name))
}

/// Sets all variables from a checkpoint of any layout, in the dtype and on the device of each variable.
///
/// # Errors
/// [`Error::Weights`] with every tensor that is missing, extra or of another shape; no variable is set then.
pub fn load_checkpoint(vars: &VarMap, checkpoint: &Checkpoint) -> Result<()> {
    set(vars, checkpoint.origin(), checkpoint.shapes(), |name| checkpoint.read(name))
}

fn set(
    vars: &VarMap,
    origin: &str,
    found: &BTreeMap<String, Vec<usize>>,
    read: impl Fn(&str) -> Result<Tensor>,
) -> Result<()> {
    let vars = named(vars);
    let expected: Vec<Entry> = vars.iter().map(|(name, var)| (name.clone(), var.dims().to_vec())).collect();
    let problems = problems(&expected, found);
    if !problems.is_empty() {
        return Err(Error::Weights { origin: origin.to_owned(), problems });
    }
    // All are read before the first is set: a damaged file leaves the variables as they were.
    let mut values = Vec::with_capacity(vars.len());
    for (name, var) in &vars {
        // Only `pos_embed` can be missing here.
        let value = if found.contains_key(name) { Some(read(name)?.to_dtype(var.dtype())?) } else { None };
        values.push(value);
    }
    for ((_, var), value) in vars.iter().zip(values) {
        if let Some(value) = value {
            var.set(&value.to_device(var.device())?)?;
        }
    }
    Ok(())
}
