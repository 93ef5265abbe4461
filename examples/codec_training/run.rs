//! The state of a run, and one step of it.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarMap;
use fpdm_core::checkpoint::{Which, read_tensors};
use fpdm_core::hub::{Hub, Source};
use fpdm_core::rng::{self, Stream};
use fpdm_train::{AdamW, Ema, Gradients, Parameters, State, clip_grad_norm};
use fpdm_vae::{LatentCodec, TinyAutoencoder, TinyConfig, fresh, open};
use serde_json::Value;

use super::critic::{Critic, Lesson, Verdict};
use super::latents::Latents;
use super::loss::Parts;
use super::options::Options;
use super::pictures::Batch;

/// Network, optimiser, averages, the codec whose latents are learned, and the critic.
pub(crate) struct Run<'a> {
    options: &'a Options,
    pub config: TinyConfig,
    codec: TinyAutoencoder,
    teacher: Option<Box<dyn LatentCodec>>,
    latents: Latents,
    /// What is not trained: an encoder that was given, or is not used.
    frozen: BTreeMap<String, Tensor>,
    parameters: Parameters,
    adam: AdamW,
    ema: Ema,
    critic: Option<Critic>,
    unread: Option<Unread>,
    description: Value,
    device: Device,
    /// Seconds of the run before it was gone on with.
    before: f64,
    /// When the first step since then began.
    start: Option<Instant>,
}

/// What is known of a step: the parts of the loss not weighted, means over patches for the critic.
pub(crate) const NUMBERS: [&str; 12] = [
    "loss",
    "grad_norm",
    "pixel",
    "gradient",
    "laplacian",
    "texture",
    "latent",
    "adversarial",
    "matching",
    "critic",
    "gap",
    "slope",
];

/// Sums over steps that are still on the device.
struct Unread {
    sums: Tensor,
    steps: u64,
    lr: f64,
}

/// What steps did.
pub(crate) struct Report {
    /// As many as [`NUMBERS`], means over the steps since the last report.
    pub means: Vec<f64>,
    pub steps: u64,
    /// Of the last step.
    pub lr: f64,
}

impl<'a> Run<'a> {
    /// A run from the beginning.
    pub(crate) fn new(options: &'a Options, device: &Device) -> Result<Self> {
        let dtype = options.teacher_dtype()?;
        let teacher = options.latents_of.as_ref().map(|name| open(name, dtype, device)).transpose()?;
        let latent_channels = match &teacher {
            Some(teacher) => {
                let crop = options.crop;
                let latents = teacher.encode(&Tensor::zeros((1, 3, crop, crop), DType::F32, device)?)?.mean;
                let factor = 1 << (options.decoder_blocks.len() - 1).min(16);
                let expected = [crop / factor; 2];
                ensure!(
                    latents.dims()[2..] == expected,
                    "--latents-of: {crop} pixels become {:?} latents, with --decoder-blocks of {} levels {expected:?}",
                    &latents.dims()[2..],
                    options.decoder_blocks.len()
                );
                latents.dim(1)?
            }
            None => options.latent_channels,
        };
        let mut config = options.network(latent_channels)?;
        let mut frozen = BTreeMap::new();
        if let Some(name) = options.latents_of.as_ref().filter(|_| !options.train_encoder) {
            frozen = tiny(name)?;
            frozen.retain(|name, _| name.starts_with("encoder."));
            if !frozen.is_empty() {
                let theirs = TinyConfig::of_tensors(&frozen.clone().into_iter().collect());
                config.encoder_block_out_channels = theirs.encoder_block_out_channels;
                config.num_encoder_blocks = theirs.num_encoder_blocks;
            } else if options.export.is_some() {
                bail!("--export: `{name}` is no AutoencoderTiny whose encoder could be exported; add --train-encoder");
            }
        }
        config.check()?;
        options.check_sides(&config)?;
        let variables = VarMap::new();
        {
            let mut data = variables.data().lock().expect("the map is new: nobody can have poisoned its lock");
            for (name, tensor) in &frozen {
                let tensor = tensor.to_dtype(options.working_dtype()?)?.to_device(device)?;
                data.insert(name.clone(), Var::from_tensor(&tensor)?);
            }
        }
        let vb = fresh(&variables, options.seed, options.working_dtype()?, device);
        let codec = TinyAutoencoder::new(config.clone(), vb)?;
        if options.latents_are_given() {
            // Only the decoder learns; an encoder that nobody gave stays beside it so that the codec is whole.
            let mut data = variables.data().lock().expect("the map is new: nobody can have poisoned its lock");
            let (encoder, decoder): (HashMap<_, _>, _) =
                std::mem::take(&mut *data).into_iter().partition(|(name, _)| name.starts_with("encoder."));
            *data = decoder;
            for (name, var) in encoder {
                frozen.entry(name).or_insert(var.as_detached_tensor().to_dtype(DType::F32)?);
            }
        }
        let parameters = Parameters::new(&variables)?;
        if let Some(name) = &options.start {
            let mut start = tiny(name)?;
            ensure!(!start.is_empty(), "--start: `{name}` is no AutoencoderTiny that can be read");
            start.retain(|name, _| name.starts_with("decoder.") || !options.latents_are_given());
            parameters.scatter(&parameters.flatten(&start, "--start")?)?;
        }
        let adam = AdamW::new(options.adamw(), parameters.gather()?)?;
        let ema = Ema::new(options.ema, &adam.master)?;
        let critic = options.has_critic().then(|| Critic::new(options, device)).transpose()?;
        let latents = Latents::new(options.kept(), options.factor(), options.crop);
        let (description, device) = (options.description(&config), device.clone());
        Ok(Self {
            options,
            config,
            codec,
            teacher,
            latents,
            frozen,
            parameters,
            adam,
            ema,
            critic,
            unread: None,
            description,
            device,
            before: 0.,
            start: None,
        })
    }

    pub(crate) fn steps_done(&self) -> u64 {
        self.adam.steps
    }

    /// Seconds since the first step began, those before a restart included.
    pub(crate) fn seconds(&self) -> f64 {
        self.before + self.start.map_or(0., |start| start.elapsed().as_secs_f64())
    }

    /// Parameters that are trained of the encoder, of the decoder and of the critic.
    pub(crate) fn counts(&self) -> [usize; 3] {
        let shapes = self.parameters.shapes();
        let count = |side: &str| {
            shapes.iter().filter(|(name, _)| name.starts_with(side)).map(|(_, s)| s.iter().product::<usize>()).sum()
        };
        [count("encoder."), count("decoder."), self.critic.as_ref().map_or(0, Critic::parameters)]
    }

    /// The codec whose latents are learned.
    pub(crate) fn teacher(&self) -> Option<&dyn LatentCodec> {
        self.teacher.as_deref()
    }

    /// The latents that the decoder will see of pictures.
    pub(crate) fn latents(&self, codec: &TinyAutoencoder, x: &Tensor) -> Result<Tensor> {
        Ok(match &self.teacher {
            Some(teacher) => teacher.encode(x)?.mean,
            None => codec.encode(x)?.mean,
        })
    }

    /// One step. Nothing waits for the device: what it did is seen by [`Run::report`].
    pub(crate) fn step(&mut self, batch: &Batch) -> Result<()> {
        self.start.get_or_insert_with(Instant::now);
        let (options, step) = (self.options, self.adam.steps);
        let x = &batch.pixels(&self.device)?;
        let zero = || Tensor::zeros((), DType::F32, &self.device);
        let (z, latent) = match &self.teacher {
            Some(teacher) if options.train_encoder => {
                let z = teacher.encode(x)?.mean.detach();
                let distance = (self.codec.encode(x)?.mean - &z)?.sqr()?.mean_all()?;
                (z, distance)
            }
            Some(teacher) => (self.latents.of(batch, &**teacher, &self.device)?, zero()?),
            None => {
                let z = self.codec.encode(x)?.mean;
                (z.clone(), z.sqr()?.mean_all()?)
            }
        };
        let z = if options.latent_noise > 0. {
            let (b, c, h, w) = z.dims4()?;
            let positions: Vec<u64> = (0..b as u64).map(|i| step * b as u64 + i).collect();
            let noise =
                rng::normal_batch(options.seed, Stream::Noise, &positions, (c, h, w), DType::F32, &self.device)?;
            (z + (noise * options.latent_noise)?)?
        } else {
            z
        };
        let y = self.codec.decode(&z)?;
        let parts = Parts::of(options, &y, x)?;
        let mut loss = (parts.sum(options)? + (&latent * options.latent_weight())?)?;
        let lr = options.rate(step, self.seconds());
        let mut critic = self.critic.as_mut().zip(options.critic_share(step));
        let [adversarial, matching] = match &critic {
            Some((critic, share)) => {
                let Verdict { adversarial, matching } = critic.judge(&y, x)?;
                loss = (loss + (&adversarial * (share * options.adversarial_weight))?)?;
                loss = (loss + (&matching * (share * options.matching_weight))?)?;
                [adversarial, matching]
            }
            None => [zero()?, zero()?],
        };
        let mut gradients = Gradients::new(&self.parameters)?;
        gradients.add(loss.backward()?, 1.)?;
        let (gradient, grad_norm) = clip_grad_norm(&gradients.flat()?, Some(options.max_grad_norm))?;
        // Not sooner: the decoder's gradient has just passed through the weights that are now overwritten.
        let [critic, gap, slope] = match &mut critic {
            Some((critic, share)) => {
                let Lesson { loss, gap, slope } = critic.learn(&y, x, *share * lr * options.critic_lr / options.lr)?;
                [loss, gap, slope]
            }
            None => [zero()?, zero()?, zero()?],
        };
        let Parts { pixel, gradient: differences, laplacian, texture } = parts;
        let numbers = [
            loss,
            grad_norm,
            pixel,
            differences,
            laplacian,
            texture,
            latent,
            adversarial,
            matching,
            critic,
            gap,
            slope,
        ];
        let numbers = Tensor::stack(&numbers.map(|t| t.detach()), 0)?;
        self.unread = Some(match self.unread.take() {
            Some(before) => Unread { sums: (before.sums + numbers)?, steps: before.steps + 1, lr },
            None => Unread { sums: numbers, steps: 1, lr },
        });
        self.adam.step(&gradient, lr)?;
        self.parameters.scatter(&self.adam.master)?;
        // At the beginning the average would still be the random start.
        self.ema.decay = options.ema.min((step + 1) as f64 / (step + 10) as f64);
        Ok(self.ema.update(&self.adam.master)?)
    }

    /// What the steps since the last report did; waits for the device. Nothing should be kept of steps before that.
    ///
    /// # Errors
    /// If a number is not finite: the weights are lost then.
    pub(crate) fn report(&mut self) -> Result<Report> {
        let Unread { sums, steps, lr } = self.unread.take().context("no step since the last report")?;
        let means: Vec<f64> = sums.to_vec1::<f32>()?.into_iter().map(|sum| f64::from(sum) / steps as f64).collect();
        ensure!(
            means.iter().all(|mean| mean.is_finite()),
            "the {steps} steps to {}: {NUMBERS:?} are {means:?}; resume from a checkpoint with a smaller --lr",
            self.adam.steps
        );
        Ok(Report { means, steps, lr })
    }

    /// The averaged weights, in f32; an encoder that is not trained is as it came.
    pub(crate) fn average(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut weights = self.parameters.named(&self.ema.average)?;
        weights.extend(self.frozen.clone());
        Ok(weights)
    }

    /// The network of the averaged weights, in f32.
    pub(crate) fn averaged(&self) -> Result<TinyAutoencoder> {
        let weights: HashMap<_, _> = self.average()?.into_iter().collect();
        Ok(TinyAutoencoder::from_tensors(self.config.clone(), "the average", weights, DType::F32, &self.device)?)
    }

    /// Everything that the next step depends on.
    pub(crate) fn state(&self) -> Result<State> {
        let named = |flat: &Tensor| self.parameters.named(&flat.to_device(&Device::Cpu)?);
        let mut state = State {
            step: self.adam.steps,
            seconds: self.seconds(),
            settings: self.description.clone(),
            weights: named(&self.adam.master)?,
            exp_avg: named(&self.adam.exp_avg)?,
            exp_avg_sq: named(&self.adam.exp_avg_sq)?,
            ema: vec![(self.options.ema, named(&self.ema.average)?)],
        };
        if let Some(critic) = &self.critic {
            critic.save(&mut state)?;
        }
        Ok(state)
    }

    /// Goes on where `state` was saved.
    pub(crate) fn restore(&mut self, mut state: State) -> Result<()> {
        state.check_settings(&self.description)?;
        if let Some(critic) = &mut self.critic {
            let steps = state.step.saturating_sub(self.options.adversarial_from);
            critic.restore(&mut state, steps)?;
        }
        let flat = |tensors: &BTreeMap<String, Tensor>, what| self.parameters.flatten(tensors, what);
        let (_, average) = state.ema.first().context("the checkpoint has no averaged weights")?;
        self.ema.average = flat(average, "checkpoint: ema")?;
        self.adam.exp_avg = flat(&state.exp_avg, "checkpoint: exp_avg")?;
        self.adam.exp_avg_sq = flat(&state.exp_avg_sq, "checkpoint: exp_avg_sq")?;
        self.adam.master = flat(&state.weights, "checkpoint: weights")?;
        self.adam.steps = state.step;
        self.before = state.seconds;
        Ok(self.parameters.scatter(&self.adam.master)?)
    }
}

/// The tensors of a codec in diffusers' AutoencoderTiny layout; nothing of another.
fn tiny(name: &str) -> Result<BTreeMap<String, Tensor>> {
    let source = Source::parse(name)?;
    let client = match source {
        Source::Hub { .. } => Hub::from_env()?,
        _ => Hub { offline: true, ..Hub::new("") },
    };
    let Ok(located) = source.locate(&client, &mut |_| {}) else { return Ok(BTreeMap::new()) };
    let mut tensors = BTreeMap::new();
    for path in located.weights {
        tensors.extend(read_tensors(path, Which::Ema)?);
    }
    tensors.retain(|name, _| name.starts_with("encoder.layers.") || name.starts_with("decoder.layers."));
    Ok(tensors)
}
