//! The averaged weights as a Hub repository has them.

use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use fpdm_core::checkpoint::{write_safetensors, write_text};
use fpdm_core::dit::{Architecture, Config, Labels};
use fpdm_core::{CodecId, Diffusion, ImplicitModel, Normalisation, Parameterization, Recommended};
use fpdm_train::Trainer;

use super::data::Data;
use super::options::Options;

/// Writes `config.json`, `diffusion.json`, `model.safetensors` and a model card to `folder`.
pub(crate) fn write(
    folder: &Path,
    options: &Options,
    config: &Config,
    trainer: &Trainer<Box<dyn ImplicitModel>>,
    data: &Data,
) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let weights: Vec<_> = trainer.ema(0)?.into_iter().collect();
    write_safetensors(folder.join("model.safetensors"), &weights)?;
    write_text(folder.join("config.json"), &config.to_json())?;
    write_text(folder.join(Diffusion::FILE), &diffusion(options, config, data)?.to_json())?;
    write_text(folder.join("README.md"), &card(options, config, trainer, data.normalisation.as_ref())?)?;
    Ok(())
}

/// What `sample` and `sample_ffhq` have to know.
fn diffusion(options: &Options, config: &Config, data: &Data) -> Result<Diffusion> {
    let flow = options.loss.prediction == Parameterization::Flow;
    let recommended = Recommended {
        sampler: Some(if flow { "euler" } else { "ddim" }.into()),
        spacing: Some("trailing".into()),
        ..Default::default()
    };
    let recommended = match config.architecture {
        // Many steps of few applications, each solve from the last solution, did best at every budget.
        Architecture::Fpdm => {
            Recommended { steps: Some(60), budget: Some("2each".into()), reuse: Some("reuse".into()), ..recommended }
        }
        // A stack has one application a step.
        Architecture::Dit => recommended,
    };
    let codec = options.data.codec()?;
    Ok(Diffusion {
        learned_variance: config.learn_sigma,
        latents: data.normalisation.clone().unwrap_or_default(),
        codec: Some(CodecId { factor: factor(&codec, config), id: codec }),
        data: Some(data.name.clone()),
        recommended,
        ..Diffusion::new(options.loss.prediction, options.loss.schedule_name().parse()?)
    })
}

/// Pixels along a latent; unknown where the codec cannot be opened, which is no reason to lose an export.
fn factor(codec: &str, config: &Config) -> Option<usize> {
    let [height, width] = config.input_size;
    let empty = Tensor::zeros((1, config.in_channels, height, width), DType::F32, &Device::Cpu).ok()?;
    let pixels = fpdm_vae::open(codec, DType::F32, &Device::Cpu).ok()?.decode(&empty).ok()?;
    Some(pixels.dim(2).ok()? / height)
}

fn card(
    options: &Options,
    config: &Config,
    trainer: &Trainer<Box<dyn ImplicitModel>>,
    normalisation: Option<&Normalisation>,
) -> Result<String> {
    let [height, width] = config.input_size;
    let kind = match config.architecture {
        Architecture::Fpdm => "fixed point diffusion model",
        Architecture::Dit => "diffusion transformer",
    };
    let command = if matches!(config.labels, Labels::Classes(n) if n > 1) { "sample" } else { "sample_ffhq" };
    let normalised = match normalisation {
        Some(by) => format!(" The latents that it knows are (x − {:?}) / {:?} of the codec's.", by.mean, by.std),
        None => String::new(),
    };
    Ok(format!(
        "---\nlibrary_name: fpdm\npipeline_tag: unconditional-image-generation\n---\n\n\
         # A {kind}\n\n\
         {} parameters; latents of {} × {height} × {width}, to be decoded with `{}`. Trained for {} steps of {} images \
         with {}; the weights are the average with decay {}.{normalised}\n\n\
         ```sh\ncargo run --release --example {command} -- --weights FOLDER\n```\n",
        config.parameter_count(),
        config.in_channels,
        options.data.codec()?,
        trainer.steps_done(),
        options.batch_size * options.accumulate,
        options.gradient.words(config.architecture),
        options.ema[0],
    ))
}
