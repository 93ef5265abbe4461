//! The averaged weights as a Hub repository has them.

use std::path::Path;

use anyhow::Result;
use fpdm_core::checkpoint::{write_safetensors, write_text};
use fpdm_core::dit::{Config, Fpdit};
use fpdm_train::Trainer;

use super::options::Options;

/// Writes `config.json`, `model.safetensors` and a model card to `folder`.
pub(crate) fn write(folder: &Path, options: &Options, config: &Config, trainer: &Trainer<Fpdit>) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let weights: Vec<_> = trainer.ema(0)?.into_iter().collect();
    write_safetensors(folder.join("model.safetensors"), &weights)?;
    write_text(folder.join("config.json"), &config.to_json())?;
    write_text(folder.join("README.md"), &card(options, config, trainer))?;
    Ok(())
}

fn card(options: &Options, config: &Config, trainer: &Trainer<Fpdit>) -> String {
    let [height, width] = config.input_size;
    format!(
        "---\nlibrary_name: fpdm\npipeline_tag: unconditional-image-generation\n---\n\n\
         # A fixed point diffusion model\n\n\
         {} parameters; latents of {} × {height} × {width}, to be decoded with `{}`. Trained for {} steps of {} images \
         with stochastic Jacobian-free backpropagation (n ≤ {}, 1 ≤ m ≤ {}); the weights are the average with decay \
         {}.\n\n\
         ```sh\ncargo run --release --example sample -- --weights FOLDER --prediction {} --schedule {}\n```\n",
        config.parameter_count(),
        config.in_channels,
        options.codec,
        trainer.steps_done(),
        options.batch_size * options.accumulate,
        options.without_grad,
        options.with_grad,
        options.ema,
        options.prediction,
        options.schedule_name(),
    )
}
