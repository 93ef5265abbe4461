//! Label vectors from a file.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};

/// The rows of a `.npy`, of a `.safetensors` with one tensor, or of a `.json`; one vector alone is one row.
pub(crate) fn read(path: &Path) -> Result<Vec<Vec<f32>>> {
    let what = || format!("--label-file {}", path.display());
    let rows = rows(path).with_context(what)?;
    ensure!(!rows.is_empty(), "{}: no row; give one vector or more", what());
    if let Some((i, bad)) = rows.iter().enumerate().find_map(|(i, row)| Some((i, row.iter().find(|v| !v.is_finite())?)))
    {
        bail!("{}: row {i} holds {bad}, which is not finite", what());
    }
    Ok(rows)
}

fn rows(path: &Path) -> Result<Vec<Vec<f32>>> {
    let tensor = match path.extension().and_then(|e| e.to_str()) {
        Some("npy") => Tensor::read_npy(path)?,
        Some("safetensors") => {
            let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
            let names = || tensors.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            ensure!(tensors.len() == 1, "holds {} tensors ({}); store the vectors alone", tensors.len(), names());
            tensors.into_values().next().context("one tensor")?
        }
        Some("json") => {
            let text = std::fs::read_to_string(path)?;
            let one = serde_json::from_str(&text).map(|row| vec![row]);
            return one.or_else(|_| serde_json::from_str(&text)).context("neither numbers nor lists of numbers");
        }
        _ => bail!("neither .npy, .safetensors nor .json"),
    };
    let rows = match tensor.rank() {
        1 => tensor.unsqueeze(0)?,
        2 => tensor,
        _ => bail!("has shape {:?}; use (vectors, numbers)", tensor.dims()),
    };
    Ok(rows.to_dtype(DType::F32)?.to_vec2()?)
}
