//! A grid of samples from the averaged weights.

use std::collections::HashMap;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use fpdm_core::dit::{Architecture, Config, Labels};
use fpdm_core::{Flow, ImplicitModel, Normalisation, Parameterization, Picard};
use fpdm_sample::{
    Ddim, Euler, FixedPointDenoiser, ImageNoise, Ledger, Network, Plan, Sampler, Spacing, StepRule, Uniform, Work,
};
use fpdm_train::Trainer;
use fpdm_vae::image::{from_tensor, grid, write_png};

use super::network;
use super::options::Options;

const IMAGES: u64 = 16;
const STEPS: usize = 20;
const APPLICATIONS: usize = 6;

/// Writes `samples-STEP.png`: the same noise and classes at every step.
pub(crate) fn write(
    options: &Options,
    config: &Config,
    trainer: &Trainer<Box<dyn ImplicitModel>>,
    normalisation: Option<&Normalisation>,
    device: &Device,
    step: u64,
) -> Result<()> {
    let average: HashMap<String, Tensor> = trainer.ema(0)?.into_iter().collect();
    let model = network::build(config, VarBuilder::from_tensors(average, DType::F32, device))?;
    let flow = options.loss.prediction == Parameterization::Flow;
    let plan = if flow {
        Plan::flow(&Flow::default(), Spacing::Trailing, STEPS)?
    } else {
        Plan::vp(&options.loss.schedule()?, Spacing::Trailing, STEPS)?
    };
    let rule: Box<dyn StepRule> = if flow { Box::new(Euler) } else { Box::new(Ddim::default()) };
    let work = Work::of(config);
    let network = Network { model: &model, parameterization: options.loss.prediction, dtype: DType::F32, work };
    network.check(&plan)?;
    let classes = match config.labels {
        Labels::Classes(n) => n as u32,
        _ => 1,
    };
    let images: Vec<u64> = (0..IMAGES).collect();
    let labels: Vec<u32> = (0..IMAGES as u32).map(|i| i % classes).collect();
    let solves = plan.solves(&*rule);
    let applications = if config.architecture == Architecture::Dit { 1 } else { APPLICATIONS };
    let ledger = Ledger::new(solves * applications, solves)?;
    let solver = Picard::default();
    let labels = Tensor::new(labels, device)?;
    let denoiser = FixedPointDenoiser::new(network, labels, &solver, Box::new(Uniform), ledger);
    let mut noise = ImageNoise::new(options.seed, &images);
    let [height, width] = config.input_size;
    let x = noise.start((config.in_channels, height, width), DType::F32, device)?;
    let latents = Sampler::new(&plan, rule, denoiser, x, Box::new(noise))?.finish()?;
    let latents = match normalisation {
        Some(by) => by.undo(&latents)?,
        None => latents,
    };
    let pixels = fpdm_vae::open(&options.data.codec()?, DType::F32, device)?.decode(&latents)?;
    let picture = grid(&from_tensor(&pixels)?, 4, 2)?;
    write_png(options.out.join(format!("samples-{step:08}.png")), &picture)?;
    Ok(())
}
