//! The averaged weights as diffusers has them.

use std::path::Path;

use anyhow::{Result, ensure};
use candle_core::Tensor;
use fpdm_core::checkpoint::{write_safetensors, write_text};
use fpdm_vae::{LatentCodec, TinyConfig};

use super::options::Options;
use super::run::Run;

/// Writes `config.json` and `diffusion_pytorch_model.safetensors` to `folder`.
///
/// Latents of a codec of its own get zero mean and unit variance over `x`, as a diffusion model wants them, by the
/// factors of the config; latents of another codec are that codec's, which have it already.
pub(crate) fn write(folder: &Path, options: &Options, run: &Run, x: &Tensor) -> Result<TinyConfig> {
    let mut config = run.config.clone();
    if options.latents_of.is_none() {
        let codec = run.averaged()?;
        let (mut count, mut sum, mut squares) = (0., 0., 0.);
        for i in 0..x.dim(0)? {
            let z = codec.encode(&x.narrow(0, i, 1)?)?.mean;
            count += z.elem_count() as f64;
            sum += f64::from(z.sum_all()?.to_scalar::<f32>()?);
            squares += f64::from(z.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
        let mean = sum / count;
        let deviation = (squares / count - mean * mean).sqrt();
        ensure!(deviation > 0. && deviation.is_finite(), "the latents' deviation is {deviation}: nothing was learned");
        (config.shift_factor, config.scaling_factor) = (mean, 1. / deviation);
    }
    std::fs::create_dir_all(folder)?;
    let dtype = options.export_dtype()?;
    let weights = run.average()?.into_iter().map(|(name, t)| Ok((name, t.to_dtype(dtype)?)));
    write_safetensors(folder.join("diffusion_pytorch_model.safetensors"), &weights.collect::<Result<Vec<_>>>()?)?;
    write_text(folder.join("config.json"), &config.to_json())?;
    Ok(config)
}
