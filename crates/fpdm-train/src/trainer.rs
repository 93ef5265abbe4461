//! The training loop, a step at a time.

use std::collections::BTreeMap;
use std::time::Instant;

use candle_core::{DType, Tensor, Var};
use candle_nn::VarMap;
use fpdm_core::dit::Labels;
use fpdm_core::rng::{self, Stream};
use fpdm_core::{Budget, Error, ImplicitModel, Picard, Problem, Result, diffuse, solve};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::memory::peak_resident_bytes;
use crate::{
    AdamW, AdamWConfig, Consistency, DataSource, Draw, Ema, Estimate, GradientEstimator, Gradients, JacobianPenalty,
    LearningRate, Objective, Parameters, State, Supervision, clip_grad_norm,
};

/// What a run does, apart from network, objective and estimator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The seed of all random streams.
    pub seed: u64,
    /// Samples of one pass through the network.
    pub batch_size: usize,
    /// Passes whose gradients are averaged into one step.
    pub accumulate: usize,
    /// The learning rate.
    pub lr: LearningRate,
    /// The optimiser.
    pub adamw: AdamWConfig,
    /// The largest norm of a gradient, if it is clipped.
    pub max_grad_norm: Option<f64>,
    /// The decays of the averages of the weights.
    pub ema: Vec<f64>,
    /// Which iterates the loss looks at.
    pub supervision: Supervision,
    /// A penalty on the map's Jacobian.
    pub jacobian: Option<JacobianPenalty>,
    /// A penalty on what changes from one time to its neighbour.
    pub consistency: Option<Consistency>,
}

impl Default for Settings {
    /// The published training, in batches of 64; with the gradient clipped to norm 1, which it lacked.
    fn default() -> Self {
        Self {
            seed: 0,
            batch_size: 64,
            accumulate: 1,
            lr: LearningRate::default(),
            adamw: AdamWConfig::default(),
            max_grad_norm: Some(1.),
            ema: vec![0.9999],
            supervision: Supervision::Last,
            jacobian: None,
            consistency: None,
        }
    }
}

impl Settings {
    /// Refuses values outside their ranges.
    pub fn check(&self) -> Result<()> {
        for (field, value) in [("batch_size", self.batch_size), ("accumulate", self.accumulate)] {
            if value == 0 {
                return Err(Error::config(field, "0 trains on nothing; use 1 or more"));
            }
        }
        self.lr.check()?;
        self.adamw.check()?;
        self.supervision.weights(1).map(|_| ())
    }
}

/// What one step did; as JSON, one line of a log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// The number of the step, from 1.
    pub step: u64,
    /// The sum of all parts.
    pub loss: f64,
    /// The weighted error of the prediction.
    pub error: f64,
    /// The variational bound, 0 without learned variance.
    pub bound: f64,
    /// The penalty on the Jacobian, 0 without one.
    pub jacobian: f64,
    /// The penalty on what changes with time, 0 without one.
    pub consistency: f64,
    /// The norm of the gradient before it is clipped.
    pub grad_norm: f64,
    /// The learning rate.
    pub lr: f64,
    /// Iterations without gradient.
    pub n: usize,
    /// Iterations with gradient.
    pub m: usize,
    /// `‖f(z) − z‖ / ‖f(z)‖` of the worst sample at the last application.
    pub residual: f64,
    /// Wall-clock time.
    pub seconds: f64,
    /// Samples over wall-clock time.
    pub images_per_s: f64,
    /// The most memory that the process has had resident so far, where it is known.
    pub peak_bytes: Option<u64>,
}

/// Network, objective, estimator and the state of a run.
///
/// The loop is the caller's: [`Trainer::step`] does one step and reports, [`Trainer::state`] is what to save.
pub struct Trainer<M> {
    model: M,
    labels: Labels,
    dtype: DType,
    parameters: Parameters,
    objective: Objective,
    estimator: Box<dyn GradientEstimator>,
    settings: Settings,
    description: Value,
    adam: AdamW,
    ema: Vec<Ema>,
}

impl<M: ImplicitModel> Trainer<M> {
    /// A run from the beginning. `model` has been built from `variables`; `description` is stored with every checkpoint
    /// and must be the same on resuming: whatever network, objective and estimator were made from.
    ///
    /// # Errors
    /// Settings out of range, or no variables.
    pub fn new(
        model: M,
        labels: Labels,
        variables: &VarMap,
        objective: Objective,
        estimator: Box<dyn GradientEstimator>,
        settings: Settings,
        description: Value,
    ) -> Result<Self> {
        settings.check()?;
        objective.check()?;
        let parameters = Parameters::new(variables)?;
        let dtype = parameters.dtype();
        let adam = AdamW::new(settings.adamw, parameters.gather()?)?;
        let ema = settings.ema.iter().map(|&decay| Ema::new(decay, &adam.master)).collect::<Result<_>>()?;
        Ok(Self { model, labels, dtype, parameters, objective, estimator, settings, description, adam, ema })
    }

    /// Steps done.
    pub fn steps_done(&self) -> u64 {
        self.adam.steps
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The network, with its weights as they are now.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// What a checkpoint stores as its configuration.
    pub fn configuration(&self) -> Value {
        json!({ "training": self.settings, "run": self.description })
    }

    /// Everything that the next step depends on. Tensors are shared, not copied, and later steps leave them alone.
    pub fn state(&self) -> Result<State> {
        let named = |flat: &Tensor| self.parameters.named(flat);
        Ok(State {
            step: self.adam.steps,
            settings: self.configuration(),
            weights: named(&self.adam.master)?,
            exp_avg: named(&self.adam.exp_avg)?,
            exp_avg_sq: named(&self.adam.exp_avg_sq)?,
            ema: self.ema.iter().map(|ema| Ok((ema.decay, named(&ema.average)?))).collect::<Result<_>>()?,
        })
    }

    /// Goes on where `state` was saved.
    ///
    /// # Errors
    /// [`Error::Config`] with the fields that differ from this run's; [`Error::Weights`] for tensors that are not this
    /// network's. The run is as it was then.
    pub fn restore(&mut self, state: &State) -> Result<()> {
        state.check_settings(&self.configuration())?;
        let flat = |tensors: &BTreeMap<String, Tensor>, what| self.parameters.flatten(tensors, what);
        let adam = AdamW {
            config: self.adam.config,
            master: flat(&state.weights, "checkpoint: weights")?,
            exp_avg: flat(&state.exp_avg, "checkpoint: exp_avg")?,
            exp_avg_sq: flat(&state.exp_avg_sq, "checkpoint: exp_avg_sq")?,
            steps: state.step,
        };
        let average = |(decay, weights): &(f64, BTreeMap<String, Tensor>)| {
            Ok(Ema { decay: *decay, average: flat(weights, "checkpoint: ema")? })
        };
        let ema = state.ema.iter().map(average).collect::<Result<Vec<_>>>()?;
        self.parameters.scatter(&adam.master)?;
        (self.adam, self.ema) = (adam, ema);
        Ok(())
    }

    /// The weights averaged with the `index`-th decay, by name, in f32.
    pub fn ema(&self, index: usize) -> Result<BTreeMap<String, Tensor>> {
        let ema = self.ema.get(index).ok_or_else(|| {
            let why = format!("there is no average number {index} among {}; set a decay", self.ema.len());
            Error::config("ema", why)
        })?;
        self.parameters.named(&ema.average)
    }

    /// An endless iterator of steps. After an error, which leaves weights and state as they were, it tries again.
    pub fn steps<'a>(&'a mut self, source: &'a dyn DataSource) -> impl Iterator<Item = Result<StepReport>> + 'a {
        std::iter::repeat_with(move || self.step(source))
    }

    /// One step: draw, solve, differentiate, clip, update weights and averages.
    ///
    /// # Errors
    /// [`Error::NonFinite`] for a loss or a gradient that is no number; whatever data, network and estimator return.
    /// Weights and state are then as they were.
    pub fn step(&mut self, source: &dyn DataSource) -> Result<StepReport> {
        let start = Instant::now();
        let step = self.adam.steps;
        let accumulate = self.settings.accumulate;
        let mut gradients = Gradients::new(&self.parameters);
        let mut sums = [0f64; 4];
        let mut last = None;
        for pass in 0..accumulate {
            let batch = source.batch(step * accumulate as u64 + pass as u64, self.settings.batch_size)?;
            let draw = self.objective.draw(&batch, self.labels, self.settings.seed)?;
            let (parts, estimate) = self.differentiate(&draw, step, &mut gradients)?;
            for (sum, part) in sums.iter_mut().zip(parts) {
                *sum += part / accumulate as f64;
            }
            last = Some(estimate);
        }
        let loss: f64 = sums.iter().sum();
        let (gradient, grad_norm) = clip_grad_norm(&gradients.flat()?, self.settings.max_grad_norm)?;
        drop(gradients);
        let estimate = last.ok_or_else(|| Error::config("accumulate", "0 trains on nothing; use 1 or more"))?;
        if !(loss.is_finite() && grad_norm.is_finite()) {
            let at = format!("step {}: the loss {loss} or the gradient's norm {grad_norm}", step + 1);
            return Err(Error::NonFinite { at, iter: estimate.n + estimate.m });
        }
        let residual = estimate.last.worst(estimate.n + estimate.m)?.rel;
        let lr = self.settings.lr.at(step);
        self.adam.step(&gradient, lr)?;
        self.parameters.scatter(&self.adam.master)?;
        for ema in &mut self.ema {
            ema.update(&self.adam.master)?;
        }
        self.parameters.device().synchronize()?;
        let seconds = start.elapsed().as_secs_f64();
        let [error, bound, jacobian, consistency] = sums;
        Ok(StepReport {
            step: step + 1,
            loss,
            error,
            bound,
            jacobian,
            consistency,
            grad_norm,
            lr,
            n: estimate.n,
            m: estimate.m,
            residual,
            seconds,
            images_per_s: (self.settings.batch_size * accumulate) as f64 / seconds,
            peak_bytes: peak_resident_bytes(),
        })
    }

    /// Adds the gradients of one batch and returns the parts of its loss: error, bound, Jacobian, consistency.
    fn differentiate(&self, draw: &Draw, step: u64, gradients: &mut Gradients) -> Result<([f64; 4], Estimate)> {
        let scale = 1. / self.settings.accumulate as f64;
        // All passes of a step draw the same n and m, so that the step has one of each.
        let mut rng = rng::stream(self.settings.seed, Stream::Solver, step);
        let problem = self.model.prepare(&draw.xt.to_dtype(self.dtype)?, &draw.t, &draw.y)?;
        let estimate = self.estimator.estimate(&problem, &mut rng)?;

        let weights = self.settings.supervision.weights(estimate.iterates.len())?;
        let points = estimate.iterates.iter().map(Var::from_tensor).collect::<candle_core::Result<Vec<_>>>()?;
        let (mut error, mut bound) = (zero(draw)?, zero(draw)?);
        for (point, weight) in points.iter().zip(weights).filter(|(_, weight)| *weight != 0.) {
            let losses = self.objective.losses(draw, &problem.readout(point)?)?;
            error = (error + (losses.error.mean_all()? * weight)?)?;
            if let Some(terms) = losses.bound {
                bound = (bound + (terms.mean_all()? * weight)?)?;
            }
        }
        let mut consistency = zero(draw)?;
        if let (Some(penalty), Some(point)) = (&self.settings.consistency, points.last()) {
            let neighbour = self.neighbour(penalty, draw, estimate.n + estimate.m)?;
            consistency = penalty.loss(&point.to_dtype(DType::F32)?, &neighbour)?;
        }
        let mut grads = ((&error + &bound)? + &consistency)?.backward()?;
        let cotangents: Vec<_> = points.iter().map(|point| grads.remove(point).map(|g| g.detach())).collect();
        gradients.add(grads, scale)?;
        estimate.pullback(&cotangents, &mut |grads| gradients.add(grads, scale))?;

        let jacobian = match &self.settings.jacobian {
            Some(penalty) => self.penalise(penalty, &problem, &estimate, &mut rng, gradients, scale)?,
            None => zero(draw)?,
        };
        let parts = [error, bound, jacobian, consistency].map(|part| part.detach());
        let parts = Tensor::stack(&parts, 0)?.to_vec1::<f32>()?; // one synchronisation for all
        Ok(([0, 1, 2, 3].map(|i| f64::from(parts[i])), estimate))
    }

    fn penalise(
        &self,
        penalty: &JacobianPenalty,
        problem: &Problem,
        estimate: &Estimate,
        rng: &mut dyn rand::RngCore,
        gradients: &mut Gradients,
        scale: f64,
    ) -> Result<Tensor> {
        let loss = penalty.loss(&*problem.map, estimate.solution(), rng)?;
        gradients.add(loss.backward()?, scale)?;
        Ok(loss.to_dtype(DType::F32)?)
    }

    /// The solution of the same latents and noise a little less noisy, with as many applications.
    fn neighbour(&self, penalty: &Consistency, draw: &Draw, applications: usize) -> Result<Tensor> {
        let levels = penalty.neighbours(&*self.objective.schedule, &draw.levels)?;
        let x = diffuse(&levels, &draw.x0, &draw.eps)?.to_dtype(self.dtype)?;
        let t: Vec<f32> = levels.iter().map(|level| level.t as f32).collect();
        let problem = self.model.prepare(&x, &Tensor::new(t, x.device())?, &draw.y)?;
        let found = solve(&Picard::default(), &*problem.frozen, problem.z0.detach(), &mut Budget(applications))?;
        Ok(found.z.detach().to_dtype(DType::F32)?)
    }
}

fn zero(draw: &Draw) -> Result<Tensor> {
    Ok(Tensor::zeros((), DType::F32, draw.x0.device())?)
}
