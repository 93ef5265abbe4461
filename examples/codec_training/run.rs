//! The state of a run, and one step of it.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarMap;
use fpdm_core::checkpoint::{Which, read_tensors};
use fpdm_core::hub::{Hub, Source};
use fpdm_core::rng::{self, Stream};
use fpdm_train::{AdamW, AdamWConfig, Ema, Gradients, LearningRate, Parameters, State, clip_grad_norm};
use fpdm_vae::{LatentCodec, TinyAutoencoder, TinyConfig, fresh, open};
use serde_json::Value;

use super::loss::Parts;
use super::options::Options;

/// Network, optimiser, averages, and the codec whose latents are learned.
pub(crate) struct Run<'a> {
    options: &'a Options,
    pub config: TinyConfig,
    codec: TinyAutoencoder,
    teacher: Option<Box<dyn LatentCodec>>,
    /// The encoder of a tiny teacher, if no other is trained.
    encoder: BTreeMap<String, Tensor>,
    parameters: Parameters,
    adam: AdamW,
    ema: Ema,
    lr: LearningRate,
    description: Value,
    device: Device,
    /// Seconds of the run before it was gone on with.
    before: f64,
    start: Instant,
}

/// What a step did.
pub(crate) struct Report {
    pub loss: f64,
    /// Pixel, gradient, laplacian, texture, latent: not weighted.
    pub parts: [f64; 5],
    pub grad_norm: f64,
    pub lr: f64,
}

impl<'a> Run<'a> {
    /// A run from the beginning.
    pub(crate) fn new(options: &'a Options, device: &Device) -> Result<Self> {
        let teacher = options.latents_of.as_ref().map(|name| open(name, DType::F32, device)).transpose()?;
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
        let mut encoder = BTreeMap::new();
        if let Some(name) = options.latents_of.as_ref().filter(|_| !options.train_encoder) {
            encoder = tiny_encoder(name)?;
            if !encoder.is_empty() {
                let theirs = TinyConfig::of_tensors(&encoder.clone().into_iter().collect());
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
            for (name, tensor) in &encoder {
                let tensor = tensor.to_dtype(options.working_dtype()?)?.to_device(device)?;
                data.insert(name.clone(), Var::from_tensor(&tensor)?);
            }
        }
        let vb = fresh(&variables, options.seed, options.working_dtype()?, device);
        let codec = TinyAutoencoder::new(config.clone(), vb)?;
        let parameters = Parameters::new(&variables)?;
        let adam = AdamW::new(AdamWConfig::default(), parameters.gather()?)?;
        let ema = Ema::new(options.ema, &adam.master)?;
        let (lr, description) = (options.learning_rate(), options.description(&config));
        let device = device.clone();
        Ok(Self {
            options,
            config,
            codec,
            teacher,
            encoder,
            parameters,
            adam,
            ema,
            lr,
            description,
            device,
            before: 0.,
            start: Instant::now(),
        })
    }

    pub(crate) fn steps_done(&self) -> u64 {
        self.adam.steps
    }

    /// Parameters of the encoder and of the decoder.
    pub(crate) fn counts(&self) -> [usize; 2] {
        ["encoder.", "decoder."].map(|side| {
            let shapes = self.parameters.shapes();
            shapes.iter().filter(|(name, _)| name.starts_with(side)).map(|(_, s)| s.iter().product::<usize>()).sum()
        })
    }

    /// The latents that the decoder will see of pictures.
    pub(crate) fn latents(&self, codec: &TinyAutoencoder, x: &Tensor) -> Result<Tensor> {
        Ok(match &self.teacher {
            Some(teacher) => teacher.encode(x)?.mean,
            None => codec.encode(x)?.mean,
        })
    }

    /// One step on pictures `x` `(B, 3, H, W)`. After an error weights and state are as they were.
    pub(crate) fn step(&mut self, x: &Tensor) -> Result<Report> {
        let options = self.options;
        let target = self.teacher.as_ref().map(|teacher| teacher.encode(x)).transpose()?;
        let target = target.map(|moments| moments.mean.detach());
        let (z, latent) = match &target {
            Some(z) if options.train_encoder => (z.clone(), (self.codec.encode(x)?.mean - z)?.sqr()?.mean_all()?),
            Some(z) => (z.clone(), Tensor::zeros((), DType::F32, &self.device)?),
            None => {
                let z = self.codec.encode(x)?.mean;
                (z.clone(), z.sqr()?.mean_all()?)
            }
        };
        let z = if options.latent_noise > 0. {
            let (b, c, h, w) = z.dims4()?;
            let positions: Vec<u64> = (0..b as u64).map(|i| self.adam.steps * b as u64 + i).collect();
            let noise =
                rng::normal_batch(options.seed, Stream::Noise, &positions, (c, h, w), DType::F32, &self.device)?;
            (z + (noise * options.latent_noise)?)?
        } else {
            z
        };
        let parts = Parts::of(options, &self.codec.decode(&z)?, x)?;
        let loss = (parts.sum(options)? + (&latent * options.latent_weight())?)?;
        let mut gradients = Gradients::new(&self.parameters)?;
        gradients.add(loss.backward()?, 1.)?;
        let (gradient, grad_norm) = clip_grad_norm(&gradients.flat()?, Some(options.max_grad_norm))?;
        let numbers = [loss, grad_norm, parts.pixel, parts.gradient, parts.laplacian, parts.texture, latent];
        let numbers = numbers.map(|t| t.detach());
        let numbers = Tensor::stack(&numbers, 0)?.to_vec1::<f32>()?; // one synchronisation for all
        let step = self.adam.steps;
        ensure!(
            numbers[..2].iter().all(|number| number.is_finite()),
            "step {}: loss {}, gradient {}",
            step + 1,
            numbers[0],
            numbers[1]
        );
        let lr = self.lr.at(step);
        self.adam.step(&gradient, lr)?;
        self.parameters.scatter(&self.adam.master)?;
        // At the beginning the average would still be the random start.
        self.ema.decay = options.ema.min((step + 1) as f64 / (step + 10) as f64);
        self.ema.update(&self.adam.master)?;
        let [loss, grad_norm] = [numbers[0], numbers[1]].map(f64::from);
        Ok(Report { loss, parts: std::array::from_fn(|i| numbers[i + 2].into()), grad_norm, lr })
    }

    /// The averaged weights, in f32; an encoder that is not trained is as it came.
    pub(crate) fn average(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut weights = self.parameters.named(&self.ema.average)?;
        weights.extend(self.encoder.clone());
        Ok(weights)
    }

    /// The network of the averaged weights, in f32.
    pub(crate) fn averaged(&self) -> Result<TinyAutoencoder> {
        let weights: HashMap<_, _> = self.average()?.into_iter().collect();
        Ok(TinyAutoencoder::from_tensors(self.config.clone(), "the average", weights, DType::F32, &self.device)?)
    }

    /// Everything that the next step depends on.
    pub(crate) fn state(&self) -> Result<State> {
        let named = |flat: &Tensor| self.parameters.named(flat);
        Ok(State {
            step: self.adam.steps,
            seconds: self.before + self.start.elapsed().as_secs_f64(),
            settings: self.description.clone(),
            weights: named(&self.adam.master)?,
            exp_avg: named(&self.adam.exp_avg)?,
            exp_avg_sq: named(&self.adam.exp_avg_sq)?,
            ema: vec![(self.options.ema, named(&self.ema.average)?)],
        })
    }

    /// Goes on where `state` was saved.
    pub(crate) fn restore(&mut self, state: &State) -> Result<()> {
        state.check_settings(&self.description)?;
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

/// The encoder of a codec in diffusers' AutoencoderTiny layout; nothing of another.
fn tiny_encoder(name: &str) -> Result<BTreeMap<String, Tensor>> {
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
    tensors.retain(|name, _| name.starts_with("encoder.layers."));
    Ok(tensors)
}
