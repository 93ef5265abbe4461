//! The averaged weights as a Hub repository has them.

use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use fpdm_core::checkpoint::{write_safetensors, write_text};
use fpdm_core::dit::{Config, Fpdit, Labels};
use fpdm_core::{CodecId, Diffusion, Normalisation, Parameterization, Recommended};
use fpdm_train::{LatentIndex, Trainer};

use super::options::Options;

/// Writes `config.json`, `diffusion.json`, `model.safetensors` and a model card to `folder`.
pub(crate) fn write(folder: &Path, options: &Options, config: &Config, trainer: &Trainer<Fpdit>) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let weights: Vec<_> = trainer.ema(0)?.into_iter().collect();
    write_safetensors(folder.join("model.safetensors"), &weights)?;
    write_text(folder.join("config.json"), &config.to_json())?;
    write_text(folder.join(Diffusion::FILE), &diffusion(options, config, Normalisation::default())?.to_json())?;
    write_text(folder.join("README.md"), &card(options, config, trainer))?;
    Ok(())
}

/// What `sample` and `sample_ffhq` have to know. `latents` is what was done to the stored latents before training.
fn diffusion(options: &Options, config: &Config, latents: Normalisation) -> Result<Diffusion> {
    let flow = options.prediction == Parameterization::Flow;
    let source = LatentIndex::read(&options.data)?.map(|index| index.source);
    let recommended = Recommended {
        sampler: Some(if flow { "euler" } else { "ddim" }.into()),
        spacing: Some("trailing".into()),
        // Many steps of few applications, each solve from the last solution, did best at every budget.
        steps: Some(60),
        budget: Some("2each".into()),
        reuse: Some("reuse".into()),
        ..Default::default()
    };
    Ok(Diffusion {
        learned_variance: config.learn_sigma,
        latents,
        codec: Some(CodecId { id: options.codec.clone(), factor: factor(&options.codec, config) }),
        data: source.as_deref().and_then(|path| Path::new(path).file_name()?.to_str()).map(str::to_owned),
        recommended,
        ..Diffusion::new(options.prediction, options.schedule_name().parse()?)
    })
}

/// Pixels along a latent; unknown where the codec cannot be opened, which is no reason to lose an export.
fn factor(codec: &str, config: &Config) -> Option<usize> {
    let [height, width] = config.input_size;
    let empty = Tensor::zeros((1, config.in_channels, height, width), DType::F32, &Device::Cpu).ok()?;
    let pixels = fpdm_vae::open(codec, DType::F32, &Device::Cpu).ok()?.decode(&empty).ok()?;
    Some(pixels.dim(2).ok()? / height)
}

fn card(options: &Options, config: &Config, trainer: &Trainer<Fpdit>) -> String {
    let [height, width] = config.input_size;
    format!(
        "---\nlibrary_name: fpdm\npipeline_tag: unconditional-image-generation\n---\n\n\
         # A fixed point diffusion model\n\n\
         {} parameters; latents of {} × {height} × {width}, to be decoded with `{}`. Trained for {} steps of {} images \
         with stochastic Jacobian-free backpropagation (n ≤ {}, 1 ≤ m ≤ {}); the weights are the average with decay \
         {}.\n\n\
         ```sh\ncargo run --release --example {} -- --weights FOLDER\n```\n",
        config.parameter_count(),
        config.in_channels,
        options.codec,
        trainer.steps_done(),
        options.batch_size * options.accumulate,
        options.without_grad,
        options.with_grad,
        options.ema,
        if matches!(config.labels, Labels::Classes(2..)) { "sample" } else { "sample_ffhq" },
    )
}
