//! The command line, and what it means.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use fpdm_core::dit::Config;
use fpdm_train::{AdamWConfig, Decay, LearningRate, Objective, Settings};
use serde_json::{Value, json};

use super::data::{Data, DataOptions};
use super::gradient::GradientOptions;
use super::loss::LossOptions;
use super::network::NetworkOptions;

/// Trains a fixed point diffusion model, or the DiT that it is measured against.
#[derive(Parser, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    pub data: DataOptions,
    /// Where checkpoints, log, curves and samples go.
    #[arg(long)]
    pub out: PathBuf,
    /// Goes on from the newest checkpoint in --out.
    #[arg(long)]
    pub resume: bool,
    /// auto, cpu, cuda or metal.
    #[arg(long, default_value = "auto")]
    pub device: String,
    #[command(flatten)]
    pub network: NetworkOptions,
    #[command(flatten)]
    pub loss: LossOptions,
    #[command(flatten)]
    pub gradient: GradientOptions,
    /// The step to stop after.
    #[arg(long, default_value_t = 100_000)]
    pub steps: u64,
    /// Stops after so many seconds of training, those before a --resume included, if that is sooner.
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Samples of one pass.
    #[arg(long, default_value_t = 64)]
    pub batch_size: usize,
    /// Passes of one step.
    #[arg(long, default_value_t = 1)]
    pub accumulate: usize,
    /// The highest learning rate.
    #[arg(long, default_value_t = 1e-4)]
    pub lr: f64,
    /// Steps of warm-up.
    #[arg(long, default_value_t = 100)]
    pub warmup: u64,
    /// constant, cosine or linear; the last two end at --steps.
    #[arg(long, default_value = "constant")]
    pub decay: Fall,
    /// AdamW's two decays.
    #[arg(long, value_delimiter = ',', default_value = "0.9,0.999")]
    pub betas: Vec<f64>,
    /// AdamW's decoupled weight decay.
    #[arg(long, default_value_t = 0.)]
    pub weight_decay: f64,
    /// The norm that gradients are clipped to; 0 clips none.
    #[arg(long, default_value_t = 1.)]
    pub max_grad_norm: f64,
    /// Decays of averaged weights, one or several. Samples and --export take the first.
    #[arg(long, value_delimiter = ',', default_value = "0.9999")]
    pub ema: Vec<f64>,
    /// Threads that prepare batches ahead; 0 prepares each when it is needed [default: 4 beside an accelerator, else 0]
    #[arg(long)]
    pub data_threads: Option<usize>,
    /// The seed of everything.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Steps from one line of the log to the next; only then the device is waited for.
    #[arg(long, default_value_t = 1)]
    pub log_every: u64,
    /// Steps from one checkpoint to the next.
    #[arg(long, default_value_t = 1000)]
    pub save_every: u64,
    /// Checkpoints that are kept.
    #[arg(long, default_value_t = 2)]
    pub keep: usize,
    /// Steps from one grid of samples to the next; 0 is none.
    #[arg(long, default_value_t = 0)]
    pub sample_every: u64,
    /// Writes the averaged weights here at the end, as the Hub has them.
    #[arg(long)]
    pub export: Option<PathBuf>,
}

/// How the learning rate falls.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Fall {
    /// Not at all.
    Constant,
    /// Along half a cosine.
    Cosine,
    /// In a straight line.
    Linear,
}

impl Options {
    /// Refuses what clap lets through.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(self.save_every > 0, "--save-every: 0 never saves; use 1 or more");
        ensure!(self.log_every > 0, "--log-every: 0 never looks; use 1 or more");
        ensure!(self.betas.len() == 2, "--betas: {:?} are not two decays; use 0.9,0.999", self.betas);
        ensure!(!self.ema.is_empty(), "--ema: use one decay or more");
        ensure!(self.max_grad_norm >= 0., "--max-grad-norm: {} is negative; 0 clips none", self.max_grad_norm);
        if let Some(seconds) = self.seconds {
            ensure!(seconds > 0., "--seconds: {seconds} trains for no time");
        }
        Ok(())
    }

    /// Everything else that a run is.
    pub(crate) fn settings(&self) -> Settings {
        let decay = match self.decay {
            Fall::Constant => Decay::Constant,
            Fall::Cosine => Decay::Cosine,
            Fall::Linear => Decay::Linear,
        };
        let total = if decay == Decay::Constant { 0 } else { self.steps };
        Settings {
            seed: self.seed,
            batch_size: self.batch_size,
            accumulate: self.accumulate,
            lr: LearningRate { peak: self.lr, warmup: self.warmup, decay, total, floor: 0. },
            adamw: AdamWConfig {
                beta1: self.betas[0],
                beta2: self.betas[1],
                weight_decay: self.weight_decay,
                ..Default::default()
            },
            max_grad_norm: (self.max_grad_norm > 0.).then_some(self.max_grad_norm),
            ema: self.ema.clone(),
            supervision: self.loss.supervision(),
            jacobian: self.loss.jacobian_penalty(),
            consistency: self.loss.consistency_penalty(),
        }
    }

    /// What must be the same on resuming besides the settings. Memory policies may differ.
    pub(crate) fn description(&self, network: &Config, objective: &Objective, data: &Data) -> Value {
        json!({
            "network": network,
            "dtype": self.network.dtype,
            "objective": self.loss.description(objective),
            "gradient": self.gradient.description(network.architecture),
            "normalisation": data.normalisation,
            "samples": data.samples,
        })
    }
}
