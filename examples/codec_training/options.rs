//! The command line, and what it means.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use candle_core::DType;
use clap::{Parser, ValueEnum};
use fpdm_train::{AdamWConfig, Decay, LearningRate};
use fpdm_vae::TinyConfig;
use serde_json::{Value, json};

/// Trains a tiny autoencoder on images: both halves, or a decoder for the latents of another codec.
#[derive(Parser, Debug)]
pub(crate) struct Options {
    /// A folder of images, or tar archives of images.
    #[arg(required = true)]
    pub data: Vec<PathBuf>,
    /// Where checkpoints, log and pictures go.
    #[arg(long)]
    pub out: PathBuf,
    /// Goes on from the newest checkpoint in --out.
    #[arg(long)]
    pub resume: bool,
    /// The codec whose latents are learned: a Hub repository, a folder or a file. Without it the codec has its own.
    #[arg(long, value_name = "CODEC")]
    pub latents_of: Option<String>,
    /// f32 or bf16: what that codec works in.
    #[arg(long, default_value = "f32")]
    pub latents_dtype: String,
    /// With --latents-of, trains an encoder too; else the export has the encoder of that codec, if it is a tiny one.
    #[arg(long)]
    pub train_encoder: bool,
    /// The codec whose weights are begun with, of the same shape: one that was exported, say, to go on with other losses.
    #[arg(long, value_name = "CODEC")]
    pub start: Option<String>,
    /// Also evaluates the codec of --latents-of as it is, before the first step.
    #[arg(long)]
    pub compare: bool,
    /// Images at the end of the data that are never trained on.
    #[arg(long, default_value_t = 64)]
    pub held_out: usize,
    /// How many of them an evaluation looks at, spread evenly.
    #[arg(long, default_value_t = 64)]
    pub eval_images: usize,
    /// Side of the square that is cut from the middle of each image, in pixels.
    #[arg(long, default_value_t = 192)]
    pub side: usize,
    /// Side of the random part of it that is trained on.
    #[arg(long, default_value_t = 128)]
    pub crop: usize,
    /// auto, cpu, cuda or metal.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// f32 or bf16: what the network works in. Master weights are f32.
    #[arg(long, default_value = "f32")]
    pub dtype: String,
    /// Channels of the latents; those of --latents-of if it is given.
    #[arg(long, default_value_t = 4)]
    pub latent_channels: usize,
    /// Width of the encoder.
    #[arg(long, default_value_t = 64)]
    pub encoder_width: usize,
    /// Blocks of each level of the encoder, from the finest.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 3, 3, 3])]
    pub encoder_blocks: Vec<usize>,
    /// Width of the decoder.
    #[arg(long, default_value_t = 64)]
    pub decoder_width: usize,
    /// Blocks of each level of the decoder, from the coarsest.
    #[arg(long, value_delimiter = ',', default_values_t = [3, 3, 3, 1])]
    pub decoder_blocks: Vec<usize>,
    /// The step to stop after.
    #[arg(long, default_value_t = 100_000)]
    pub steps: u64,
    /// Stops after so many seconds of training, those before a --resume included, if that is sooner. A --decay then ends
    /// with them, and the run depends on the clock: no two are alike.
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Images of one step.
    #[arg(long, default_value_t = 16)]
    pub batch_size: usize,
    /// The highest learning rate.
    #[arg(long, default_value_t = 5e-4)]
    pub lr: f64,
    /// Steps of warm-up.
    #[arg(long, default_value_t = 200)]
    pub warmup: u64,
    /// constant, cosine or linear; the last two end at --steps, or with --seconds if that is sooner.
    #[arg(long, default_value = "cosine")]
    pub decay: Fall,
    /// AdamW's two decays.
    #[arg(long, value_delimiter = ',', default_value = "0.9,0.999")]
    pub betas: Vec<f64>,
    /// Decay of the averaged weights; less in the first steps.
    #[arg(long, default_value_t = 0.999)]
    pub ema: f64,
    /// The largest norm of a gradient.
    #[arg(long, default_value_t = 1.)]
    pub max_grad_norm: f64,
    /// l1 or l2: the error of a pixel.
    #[arg(long, default_value = "l1")]
    pub pixel: Norm,
    /// Weight of the error of pixels.
    #[arg(long, default_value_t = 1.)]
    pub pixel_weight: f64,
    /// Weight of the error of differences between neighbouring pixels, for sharpness.
    #[arg(long, default_value_t = 0.5)]
    pub gradient_weight: f64,
    /// Weight of the error over the levels of a Laplacian pyramid.
    #[arg(long, default_value_t = 0.)]
    pub laplacian_weight: f64,
    /// Weight of how much less or more texture, wherever it is, each 8×8 pixels have than the original.
    #[arg(long, default_value_t = 0.)]
    pub texture_weight: f64,
    /// Weight of latents: of their distance from those of --latents-of, or of the square of one's own.
    #[arg(long)]
    pub latent_weight: Option<f64>,
    /// Standard deviation of noise on the latents that the decoder is trained on.
    #[arg(long, default_value_t = 0.)]
    pub latent_noise: f64,
    /// Weight of how much less original a decoded picture looks to a critic that is trained beside the decoder.
    #[arg(long, default_value_t = 0.)]
    pub adversarial_weight: f64,
    /// Weight of the distance between decoded picture and original in the layers of that critic.
    #[arg(long, default_value_t = 0.)]
    pub matching_weight: f64,
    /// Steps before the critic learns; both weights rise to their values over --warmup steps from there.
    #[arg(long, default_value_t = 1000)]
    pub adversarial_from: u64,
    /// Width of the critic.
    #[arg(long, default_value_t = 64)]
    pub critic_width: usize,
    /// How often the critic halves a picture.
    #[arg(long, default_value_t = 3)]
    pub critic_levels: usize,
    /// The highest learning rate of the critic; it warms up and falls as --lr does.
    #[arg(long, default_value_t = 2e-4)]
    pub critic_lr: f64,
    /// Weight of the square of the critic's slope at originals.
    #[arg(long, default_value_t = 0.1)]
    pub critic_penalty: f64,
    /// The seed of everything.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Threads that read images.
    #[arg(long, default_value_t = 4)]
    pub readers: usize,
    /// GiB of images, and of their latents, that are kept in memory after their first use.
    #[arg(long, default_value_t = 2.)]
    pub memory: f64,
    /// Steps from one line of the log to the next.
    #[arg(long, default_value_t = 50)]
    pub log_every: u64,
    /// Steps from one evaluation on held-out images to the next.
    #[arg(long, default_value_t = 1000)]
    pub eval_every: u64,
    /// Steps from one checkpoint to the next.
    #[arg(long, default_value_t = 1000)]
    pub save_every: u64,
    /// Checkpoints that are kept.
    #[arg(long, default_value_t = 2)]
    pub keep: usize,
    /// Writes the averaged weights here at the end, in the layout of diffusers' AutoencoderTiny.
    #[arg(long)]
    pub export: Option<PathBuf>,
    /// f16 or f32: what they are written in.
    #[arg(long, default_value = "f16")]
    pub export_dtype: String,
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

/// How a difference counts.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Norm {
    /// Its absolute value.
    L1,
    /// Its square.
    L2,
}

impl Options {
    /// Refuses what cannot be, before any work.
    pub(crate) fn check(&self) -> Result<()> {
        let positive = [
            ("--held-out", self.held_out as u64),
            ("--eval-images", self.eval_images as u64),
            ("--batch-size", self.batch_size as u64),
            ("--readers", self.readers as u64),
            ("--log-every", self.log_every),
            ("--eval-every", self.eval_every),
            ("--save-every", self.save_every),
            ("--keep", self.keep as u64),
            ("--critic-width", self.critic_width as u64),
            ("--critic-levels", self.critic_levels as u64),
        ];
        for (flag, value) in positive {
            ensure!(value > 0, "{flag}: 0; use 1 or more");
        }
        let weights = [
            ("--pixel-weight", self.pixel_weight),
            ("--gradient-weight", self.gradient_weight),
            ("--laplacian-weight", self.laplacian_weight),
            ("--texture-weight", self.texture_weight),
            ("--latent-weight", self.latent_weight()),
            ("--latent-noise", self.latent_noise),
            ("--adversarial-weight", self.adversarial_weight),
            ("--matching-weight", self.matching_weight),
            ("--critic-lr", self.critic_lr),
            ("--critic-penalty", self.critic_penalty),
            ("--memory", self.memory),
        ];
        for (flag, value) in weights {
            ensure!(value >= 0. && value.is_finite(), "{flag}: {value}; use 0 or more");
        }
        ensure!(self.max_grad_norm > 0., "--max-grad-norm: {}; use more than 0", self.max_grad_norm);
        ensure!(self.texture_weight == 0. || self.crop >= 16, "--texture-weight: needs a --crop of 16 or more");
        ensure!(self.seconds.is_none_or(|s| s > 0.), "--seconds: use more than 0");
        ensure!(self.betas.len() == 2, "--betas: {:?} are not two decays; use 0.9,0.999", self.betas);
        self.adamw().check()?;
        ensure!(self.latents_of.is_some() || !self.compare, "--compare: without --latents-of there is no other codec");
        ensure!(
            !self.has_critic() || self.critic_levels < 32 && self.crop >> self.critic_levels > 0,
            "--critic-levels: a --crop of {} cannot be halved {} times",
            self.crop,
            self.critic_levels
        );
        ensure!(self.latents_of.is_some() || !self.train_encoder, "--train-encoder: without --latents-of it always is");
        self.working_dtype()?;
        self.teacher_dtype()?;
        self.export_dtype()?;
        self.learning_rate().check()?;
        Ok(())
    }

    /// Whether the crop and the square are whole latents.
    pub(crate) fn check_sides(&self, config: &TinyConfig) -> Result<()> {
        let factor = config.factor();
        for (flag, side) in [("--side", self.side), ("--crop", self.crop)] {
            ensure!(side > 0 && side % factor == 0, "{flag}: {side} is no positive multiple of {factor}");
        }
        ensure!(self.crop <= self.side, "--crop: {} does not fit into --side {}", self.crop, self.side);
        Ok(())
    }

    /// The network, whose latents have so many channels.
    pub(crate) fn network(&self, latent_channels: usize) -> Result<TinyConfig> {
        let config = TinyConfig {
            latent_channels,
            encoder_block_out_channels: vec![self.encoder_width; self.encoder_blocks.len()],
            decoder_block_out_channels: vec![self.decoder_width; self.decoder_blocks.len()],
            num_encoder_blocks: self.encoder_blocks.clone(),
            num_decoder_blocks: self.decoder_blocks.clone(),
            ..TinyConfig::default()
        };
        config.check()?;
        Ok(config)
    }

    /// What the network works in.
    pub(crate) fn working_dtype(&self) -> Result<DType> {
        dtype("--dtype", &self.dtype)
    }

    /// What the codec of --latents-of works in.
    pub(crate) fn teacher_dtype(&self) -> Result<DType> {
        dtype("--latents-dtype", &self.latents_dtype)
    }

    /// What is exported.
    pub(crate) fn export_dtype(&self) -> Result<DType> {
        match self.export_dtype.as_str() {
            "f16" => Ok(DType::F16),
            "f32" => Ok(DType::F32),
            other => bail!("--export-dtype: `{other}` is neither f16 nor f32"),
        }
    }

    /// The weight of latents: of a distance it has to be large, of a square small.
    pub(crate) fn latent_weight(&self) -> f64 {
        self.latent_weight.unwrap_or(if self.latents_of.is_some() { 1. } else { 1e-4 })
    }

    /// Whether there is a critic.
    pub(crate) fn has_critic(&self) -> bool {
        self.adversarial_weight > 0. || self.matching_weight > 0.
    }

    /// Whether latents are those of whole images by a codec that does not change: then each image is encoded once.
    pub(crate) fn latents_are_given(&self) -> bool {
        self.latents_of.is_some() && !self.train_encoder
    }

    /// Pixels to a latent.
    pub(crate) fn factor(&self) -> usize {
        1 << (self.decoder_blocks.len().max(1) - 1).min(16)
    }

    /// What the offsets of crops are multiples of.
    pub(crate) fn grid(&self) -> usize {
        if self.latents_are_given() { self.factor() } else { 1 }
    }

    /// How many images fit into --memory, with their latents as they are and mirrored.
    pub(crate) fn kept(&self) -> usize {
        let latents = if self.latents_are_given() {
            2 * 4 * self.latent_channels * (self.side / self.factor()).pow(2)
        } else {
            0
        };
        (self.memory * 2f64.powi(30) / (3 * self.side * self.side + latents) as f64) as usize
    }

    /// The optimiser's settings.
    pub(crate) fn adamw(&self) -> AdamWConfig {
        AdamWConfig { beta1: self.betas[0], beta2: self.betas[1], ..AdamWConfig::default() }
    }

    /// The learning rate of a step, counted from 0, `seconds` after the first began.
    pub(crate) fn rate(&self, step: u64, seconds: f64) -> f64 {
        let by_step = self.learning_rate();
        let rate = by_step.at(step);
        match self.seconds {
            Some(all) if by_step.decay != Decay::Constant => {
                // The same curve over a share of the time, in millionths.
                let total = 1_000_000;
                let by_time = LearningRate { warmup: 0, total, ..by_step };
                rate.min(by_time.at((seconds / all * total as f64) as u64))
            }
            _ => rate,
        }
    }

    /// The share of the critic's weights at a step, counted from 0, if it learns by then.
    pub(crate) fn critic_share(&self, step: u64) -> Option<f64> {
        let learned = step.checked_sub(self.adversarial_from).filter(|_| self.has_critic())?;
        Some(((learned + 1) as f64 / (self.warmup + 1) as f64).min(1.))
    }

    /// The learning rate over steps.
    pub(crate) fn learning_rate(&self) -> LearningRate {
        let decay = match self.decay {
            Fall::Constant => Decay::Constant,
            Fall::Cosine => Decay::Cosine,
            Fall::Linear => Decay::Linear,
        };
        let total = if decay == Decay::Constant { 0 } else { self.steps };
        LearningRate { peak: self.lr, warmup: self.warmup, decay, total, floor: 0. }
    }

    /// What must be the same on resuming. Which data it is, is not known by name.
    pub(crate) fn description(&self, config: &TinyConfig) -> Value {
        json!({
            "network": { "latent_channels": config.latent_channels,
                "encoder": [[self.encoder_width], self.encoder_blocks],
                "decoder": [[self.decoder_width], self.decoder_blocks] },
            "latents_of": self.latents_of,
            "latents_dtype": self.latents_dtype,
            "train_encoder": self.train_encoder,
            "start": self.start,
            "images": { "held_out": self.held_out, "side": self.side, "crop": self.crop, "batch_size": self.batch_size },
            "dtype": self.dtype,
            "lr": self.learning_rate(),
            "seconds": if matches!(self.decay, Fall::Constant) { None } else { self.seconds },
            "betas": self.betas,
            "ema": self.ema,
            "max_grad_norm": self.max_grad_norm,
            "loss": { "pixel": format!("{:?}", self.pixel), "pixel_weight": self.pixel_weight,
                "gradient_weight": self.gradient_weight, "laplacian_weight": self.laplacian_weight,
                "texture_weight": self.texture_weight, "latent_weight": self.latent_weight(),
                "latent_noise": self.latent_noise },
            "critic": self.has_critic().then(|| json!({ "adversarial_weight": self.adversarial_weight,
                "matching_weight": self.matching_weight, "from": self.adversarial_from, "width": self.critic_width,
                "levels": self.critic_levels, "lr": self.critic_lr, "penalty": self.critic_penalty })),
            "seed": self.seed,
        })
    }
}

fn dtype(flag: &str, text: &str) -> Result<DType> {
    match text {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::BF16),
        other => bail!("{flag}: `{other}` is neither f32 nor bf16"),
    }
}
