//! A network that tells decoded pictures from originals, patch by patch, and what a decoder learns from it.
//!
//! The critic compares each decoded picture with its original: of logits `D` the critic learns from
//! `softplus(D(y) − D(x))`, the decoder from `softplus(D(x) − D(y))` (Jolicoeur-Martineau 2018, arXiv 1807.00734). Its
//! slope at originals is held small (Mescheder, Geiger and Nowozin 2018, arXiv 1801.04406), measured as a difference
//! along noise, since there are no second derivatives here (Lin et al. 2025, arXiv 2501.08316, section 3.3). Its layers
//! are a distance of their own: the decoder also learns to have the original's activations (Larsen et al. 2016, arXiv
//! 1512.09300).

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::{Init, VarBuilder, VarMap};
use fpdm_core::rng::{Stream, normal_batch};
use fpdm_kernels::{Conv2d, conv2d};
use fpdm_train::{AdamW, AdamWConfig, Gradients, Parameters, State, clip_grad_norm};
use fpdm_vae::fresh;

use super::options::Options;

/// Before the names of its tensors in a checkpoint.
const PREFIX: &str = "critic.";

/// The standard deviation of the noise along which its slope is measured, pixels being in [-1, 1].
const PROBE: f64 = 0.05;

/// Convolutions of 3×3 with ReLU: one on all pixels, then two a level, of which the first halves the picture.
struct Network {
    layers: Vec<Layer>,
    last: Layer,
}

struct Layer {
    weight: Tensor,
    /// The last has none: only differences of logits are ever looked at.
    bias: Option<Tensor>,
    how: Conv2d,
}

/// What the network says of pictures.
struct Seen {
    /// The last activations of each level.
    activations: Vec<Tensor>,
    /// One for each patch, in f32: above 0 if it looks like an original.
    logits: Tensor,
}

impl Layer {
    fn new(vb: VarBuilder, from: usize, to: usize, stride: usize, relu: bool) -> Result<Self> {
        // He et al. 2015: what goes through a ReLU keeps its size.
        let bound = ((if relu { 6. } else { 1. }) / (9 * from) as f64).sqrt();
        Ok(Self {
            weight: vb.get_with_hints((to, from, 3, 3), "weight", Init::Uniform { lo: -bound, up: bound })?,
            bias: relu.then(|| vb.get_with_hints(to, "bias", Init::Const(0.))).transpose()?,
            how: Conv2d { stride, before: 1, after: 1, relu, ..Conv2d::default() },
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(conv2d(x, &self.weight, self.bias.as_ref(), None, self.how)?)
    }
}

impl Network {
    fn new(vb: VarBuilder, width: usize, levels: usize) -> Result<Self> {
        let mut layers = vec![Layer::new(vb.pp("layers.0"), 3, width, 1, true)?];
        for i in 1..=2 * levels {
            layers.push(Layer::new(vb.pp(format!("layers.{i}")), width, width, 1 + i % 2, true)?);
        }
        Ok(Self { layers, last: Layer::new(vb.pp("last"), width, 1, 1, false)? })
    }

    fn forward(&self, x: &Tensor) -> Result<Seen> {
        let (mut x, mut activations) = (x.clone(), Vec::new());
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x)?;
            if i > 0 && i % 2 == 0 {
                activations.push(x.clone());
            }
        }
        Ok(Seen { logits: self.last.forward(&x)?.to_dtype(DType::F32)?, activations })
    }
}

/// `log(1 + eˣ)`, whatever the size of `x`.
fn softplus(x: &Tensor) -> Result<Tensor> {
    Ok((x.relu()? + (x.abs()?.neg()?.exp()? + 1.)?.log()?)?)
}

/// What the decoder hears; numbers, not yet weighted.
pub(crate) struct Verdict {
    pub adversarial: Tensor,
    pub matching: Tensor,
}

/// What a step of the critic was; numbers.
pub(crate) struct Lesson {
    /// Its loss without the penalty: 0.69 if it cannot tell.
    pub loss: Tensor,
    /// How much more original originals look to it.
    pub gap: Tensor,
    /// The square of its slope at originals.
    pub slope: Tensor,
}

/// The critic and its optimiser.
pub(crate) struct Critic {
    network: Network,
    /// The same weights, for those who learn nothing about them.
    frozen: Network,
    parameters: Parameters,
    adam: AdamW,
    noise: Tensor,
    dtype: DType,
    max_grad_norm: f64,
    penalty: f64,
}

impl Critic {
    pub(crate) fn new(options: &Options, device: &Device) -> Result<Self> {
        let (dtype, variables) = (options.working_dtype()?, VarMap::new());
        let (width, levels) = (options.critic_width, options.critic_levels);
        let network = Network::new(fresh(&variables, options.seed, dtype, device).pp("critic"), width, levels)?;
        let detached = {
            let data = variables.data().lock().expect("the map is new: nobody can have poisoned its lock");
            data.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect()
        };
        let frozen = Network::new(VarBuilder::from_tensors(detached, dtype, device).pp("critic"), width, levels)?;
        let parameters = Parameters::new(&variables)?;
        // Little memory of older gradients: the decoder that they were about has moved.
        let config = AdamWConfig { beta1: 0.5, beta2: 0.99, ..AdamWConfig::default() };
        let adam = AdamW::new(config, parameters.gather()?)?;
        let positions: Vec<u64> = (0..options.batch_size as u64).collect();
        let shape = (3, options.crop, options.crop);
        let noise = normal_batch(!options.seed, Stream::Noise, &positions, shape, dtype, device)?;
        let (max_grad_norm, penalty) = (options.max_grad_norm, options.critic_penalty);
        Ok(Self { network, frozen, parameters, adam, noise, dtype, max_grad_norm, penalty })
    }

    pub(crate) fn parameters(&self) -> usize {
        self.parameters.len()
    }

    /// What it says of decoded pictures `y` beside their originals `x`, both `(B, 3, H, W)`.
    pub(crate) fn judge(&self, y: &Tensor, x: &Tensor) -> Result<Verdict> {
        let [x, y] = [x, y].map(|t| t.to_dtype(self.dtype));
        let (real, fake) = (self.frozen.forward(&x?)?, self.frozen.forward(&y?)?);
        let mut matching = Tensor::zeros((), DType::F32, real.logits.device())?;
        for (fake, real) in fake.activations.iter().zip(&real.activations) {
            // As a share of their size: what a critic does to the scale of its layers changes nothing.
            let size = (real.mean_all()?.to_dtype(DType::F32)? + 1e-6)?;
            matching = (matching + ((fake - real)?.abs()?.mean_all()?.to_dtype(DType::F32)? / size)?)?;
        }
        let matching = (matching / real.activations.len() as f64)?;
        Ok(Verdict { adversarial: softplus(&(real.logits - fake.logits)?)?.mean_all()?, matching })
    }

    /// Learns to tell `y` from `x`, both `(B, 3, H, W)` and neither with a history.
    pub(crate) fn learn(&mut self, y: &Tensor, x: &Tensor, lr: f64) -> Result<Lesson> {
        let [x, y] = [x, y].map(|t| t.detach().to_dtype(self.dtype));
        let (x, y) = (x?, y?);
        let b = x.dim(0)?;
        // The same numbers elsewhere: drawing new ones on the host would take longer than the step.
        let step = self.adam.steps as usize;
        let noise = self.noise.roll((step % b) as i32, 0)?.roll((step / b % x.dim(3)?) as i32, 3)?;
        let near = (&x + (noise * PROBE)?)?;
        let logits = self.network.forward(&Tensor::cat(&[&x, &y, &near], 0)?)?.logits;
        let part = |i: usize| logits.narrow(0, i * b, b);
        let (real, fake, near) = (part(0)?, part(1)?, part(2)?);
        let gap = (&real - fake)?;
        let loss = softplus(&gap.neg()?)?.mean_all()?;
        let slope = ((near - real)? * (1. / PROBE))?.sqr()?.mean_all()?;
        let mut gradients = Gradients::new(&self.parameters)?;
        gradients.add((&loss + (&slope * (0.5 * self.penalty))?)?.backward()?, 1.)?;
        let (gradient, _) = clip_grad_norm(&gradients.flat()?, Some(self.max_grad_norm))?;
        self.adam.step(&gradient, lr)?;
        self.parameters.scatter(&self.adam.master)?;
        Ok(Lesson { loss: loss.detach(), gap: gap.mean_all()?.detach(), slope: slope.detach() })
    }

    /// Adds what its next step depends on to the state of a run.
    pub(crate) fn save(&self, state: &mut State) -> Result<()> {
        let parts = [
            (&mut state.weights, &self.adam.master),
            (&mut state.exp_avg, &self.adam.exp_avg),
            (&mut state.exp_avg_sq, &self.adam.exp_avg_sq),
        ];
        for (to, flat) in parts {
            to.extend(self.parameters.named(flat)?);
        }
        Ok(())
    }

    /// Takes it out again, after `steps` of its steps.
    pub(crate) fn restore(&mut self, state: &mut State, steps: u64) -> Result<()> {
        let flat = |tensors: &mut BTreeMap<String, Tensor>, what: &str| -> Result<Tensor> {
            let (own, rest) = std::mem::take(tensors).into_iter().partition(|(name, _)| name.starts_with(PREFIX));
            *tensors = rest;
            self.parameters.flatten(&own, what).context("the critic")
        };
        let exp_avg = flat(&mut state.exp_avg, "checkpoint: exp_avg")?;
        let exp_avg_sq = flat(&mut state.exp_avg_sq, "checkpoint: exp_avg_sq")?;
        self.adam.master = flat(&mut state.weights, "checkpoint: weights")?;
        (self.adam.exp_avg, self.adam.exp_avg_sq, self.adam.steps) = (exp_avg, exp_avg_sq, steps);
        Ok(self.parameters.scatter(&self.adam.master)?)
    }
}
