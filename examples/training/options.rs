//! The command line, and what it means.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use candle_core::DType;
use clap::Parser;
use fpdm_core::dit::{Config, Labels, Size};
use fpdm_core::{Flow, Parameterization, Vp};
use fpdm_train::{
    Decay, GradientEstimator, LatentShards, LearningRate, Memory, Objective, Settings, StochasticJfb, Times, Weighting,
};
use serde_json::{Value, json};

/// Trains a fixed point diffusion model on encoded images.
#[derive(Parser, Debug)]
pub(crate) struct Options {
    /// A folder that `encode_dataset` has written.
    pub data: PathBuf,
    /// Where checkpoints, log, curves and samples go.
    #[arg(long)]
    pub out: PathBuf,
    /// Goes on from the newest checkpoint in --out.
    #[arg(long)]
    pub resume: bool,
    /// tiny, S, B, L or XL.
    #[arg(long, default_value = "S")]
    pub size: String,
    /// Side of the patches that become tokens, in latents.
    #[arg(long, default_value_t = 2)]
    pub patch: usize,
    /// f32 or bf16: what the network works in. Master weights are f32.
    #[arg(long, default_value = "f32")]
    pub dtype: String,
    /// The step to stop after.
    #[arg(long, default_value_t = 100_000)]
    pub steps: u64,
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
    /// Decay of the averaged weights.
    #[arg(long, default_value_t = 0.9999)]
    pub ema: f64,
    /// Iterations without gradient, at most.
    #[arg(long, default_value_t = 6)]
    pub without_grad: usize,
    /// Iterations with gradient, at most.
    #[arg(long, default_value_t = 6)]
    pub with_grad: usize,
    /// Computes iterations again, so many at a time, instead of storing their graphs.
    #[arg(long)]
    pub recompute: Option<usize>,
    /// v, eps, x0 or flow.
    #[arg(long, default_value = "v")]
    pub prediction: Parameterization,
    /// uniform, p2, snr, truncated-snr or min-snr.
    #[arg(long, default_value = "uniform")]
    pub weighting: String,
    /// The probability that a label is dropped.
    #[arg(long, default_value_t = 0.1)]
    pub label_dropout: f64,
    /// The seed of everything.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Steps from one checkpoint to the next.
    #[arg(long, default_value_t = 1000)]
    pub save_every: u64,
    /// Checkpoints that are kept.
    #[arg(long, default_value_t = 2)]
    pub keep: usize,
    /// Steps from one grid of samples to the next; 0 is none.
    #[arg(long, default_value_t = 0)]
    pub sample_every: u64,
    /// What samples are decoded with: what the data were encoded with.
    #[arg(long, default_value = "madebyollin/taesd")]
    pub codec: String,
    /// Writes the averaged weights here at the end, as the Hub has them.
    #[arg(long)]
    pub export: Option<PathBuf>,
}

/// How the learning rate falls.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Fall {
    /// Not at all.
    Constant,
    /// Along half a cosine.
    Cosine,
    /// In a straight line.
    Linear,
}

impl Options {
    /// The network for the latents and classes of `data`.
    pub(crate) fn network(&self, data: &LatentShards) -> Result<Config> {
        ensure!(self.save_every > 0, "--save-every: 0 never saves; use 1 or more");
        let &[channels, height, width] = data.shape().as_slice() else { bail!("the data set is empty") };
        let base = match self.size.as_str() {
            "tiny" => Config { hidden_size: 64, num_heads: 4, ..Config::fpdm(Size::S, self.patch) },
            "S" => Config::fpdm(Size::S, self.patch),
            "B" => Config::fpdm(Size::B, self.patch),
            "L" => Config::fpdm(Size::L, self.patch),
            "XL" => Config::fpdm(Size::XL, self.patch),
            other => bail!("--size: `{other}` is none of tiny, S, B, L, XL"),
        };
        let config = Config {
            input_size: [height, width],
            in_channels: channels,
            labels: Labels::Classes(data.index().classes.len().max(1)),
            learn_sigma: self.learns_variance(),
            ..base
        };
        config.check()?;
        Ok(config)
    }

    fn learns_variance(&self) -> bool {
        self.prediction != Parameterization::Flow
    }

    /// What the network works in.
    pub(crate) fn dtype(&self) -> Result<DType> {
        match self.dtype.as_str() {
            "f32" => Ok(DType::F32),
            "bf16" => Ok(DType::BF16),
            other => bail!("--dtype: `{other}` is neither f32 nor bf16"),
        }
    }

    /// The schedule: with zero terminal SNR where the prediction says what there is at its end.
    pub(crate) fn schedule(&self) -> Result<Vp> {
        match self.prediction {
            Parameterization::Eps => Ok(Vp::default()),
            _ => Ok(Vp::default().zero_terminal_snr()?),
        }
    }

    /// The name of the schedule for `sample`.
    pub(crate) fn schedule_name(&self) -> &'static str {
        match self.prediction {
            Parameterization::Flow => "flow",
            Parameterization::Eps => "linear",
            _ => "zero-snr",
        }
    }

    /// What is trained.
    pub(crate) fn objective(&self) -> Result<Objective> {
        let weighting = match self.weighting.as_str() {
            "uniform" => Weighting::Uniform,
            "p2" => Weighting::P2 { k: 1., gamma: 0.5 },
            "snr" => Weighting::Snr,
            "truncated-snr" => Weighting::TruncatedSnr,
            "min-snr" => Weighting::MinSnr(5.),
            other => bail!("--weighting: `{other}` is none of uniform, p2, snr, truncated-snr, min-snr"),
        };
        let label_dropout = self.label_dropout;
        if self.prediction == Parameterization::Flow {
            return Ok(Objective {
                schedule: Arc::new(Flow::default()),
                weighting,
                label_dropout,
                ..Objective::flow()
            });
        }
        let vp = self.schedule()?;
        Ok(Objective {
            schedule: Arc::new(vp.clone()),
            parameterization: self.prediction,
            weighting,
            variance: Some(vp),
            times: Times::Whole,
            label_dropout,
        })
    }

    /// How gradients are estimated.
    pub(crate) fn estimator(&self) -> Result<Box<dyn GradientEstimator>> {
        ensure!(self.with_grad > 0, "--with-grad: 0 iterations have no gradient; use 1 or more");
        Ok(Box::new(StochasticJfb {
            without_grad: 0..=self.without_grad,
            with_grad: 1..=self.with_grad,
            memory: self.recompute.map_or(Memory::Store, Memory::Recompute),
            ..Default::default()
        }))
    }

    /// The rest.
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
            ema: vec![self.ema],
            ..Default::default()
        }
    }

    /// What must be the same on resuming. Memory policies change no result but rounding and may differ.
    pub(crate) fn description(&self, network: &Config) -> Value {
        json!({
            "network": network,
            "dtype": self.dtype,
            "prediction": self.prediction,
            "weighting": self.weighting,
            "label_dropout": self.label_dropout,
            "without_grad": self.without_grad,
            "with_grad": self.with_grad,
        })
    }
}
