//! The averaged weights as a Hub repository has them.

use std::path::Path;

use anyhow::Result;
use fpdm_core::ImplicitModel;
use fpdm_core::checkpoint::{write_safetensors, write_text};
use fpdm_core::dit::{Architecture, Config, Labels};
use fpdm_train::{Normalisation, Trainer};

use super::options::Options;

/// Writes `config.json`, `model.safetensors` and a model card to `folder`.
pub(crate) fn write(
    folder: &Path,
    options: &Options,
    config: &Config,
    trainer: &Trainer<Box<dyn ImplicitModel>>,
    normalisation: Option<&Normalisation>,
) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let weights: Vec<_> = trainer.ema(0)?.into_iter().collect();
    write_safetensors(folder.join("model.safetensors"), &weights)?;
    write_text(folder.join("config.json"), &config.to_json())?;
    write_text(folder.join("README.md"), &card(options, config, trainer, normalisation))?;
    Ok(())
}

fn card(
    options: &Options,
    config: &Config,
    trainer: &Trainer<Box<dyn ImplicitModel>>,
    normalisation: Option<&Normalisation>,
) -> String {
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
    format!(
        "---\nlibrary_name: fpdm\npipeline_tag: unconditional-image-generation\n---\n\n\
         # A {kind}\n\n\
         {} parameters; latents of {} × {height} × {width}, to be decoded with `{}`. Trained for {} steps of {} images \
         with {}; the weights are the average with decay {}.{normalised}\n\n\
         ```sh\ncargo run --release --example {command} -- --weights FOLDER --prediction {} --schedule {}\n```\n",
        config.parameter_count(),
        config.in_channels,
        options.data.codec,
        trainer.steps_done(),
        options.batch_size * options.accumulate,
        options.gradient.words(config.architecture),
        options.ema[0],
        options.loss.prediction,
        options.loss.schedule_name(),
    )
}
