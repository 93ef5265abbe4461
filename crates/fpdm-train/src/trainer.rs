//! The training loop, a step at a time.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarMap;
use fpdm_core::dit::Labels;
use fpdm_core::rng::{self, Stream};
use fpdm_core::{Budget, Error, ImplicitModel, Picard, Problem, Result, diffuse, solve};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::fused;
use crate::report::{Clock, Seen, Unread};
use crate::{
    AdamW, AdamWConfig, Consistency, DataSource, Draw, Ema, Estimate, GradientEstimator, Gradients, JacobianPenalty,
    LearningRate, Objective, Pairs, Parameters, Recipe, State, StepReport, Supervision, clip_grad_norm,
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

/// Network, objective, estimator and the state of a run.
///
/// The loop is the caller's: [`Trainer::step`] does one step and reports, [`Trainer::state`] is what to save. A loop that
/// keeps an accelerator busy calls [`Trainer::advance`], which does not wait for it, and [`Trainer::report`] now and then.
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
    clock: Clock,
    unread: Option<Unread>,
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
        let (clock, unread) = (Clock::default(), None);
        Ok(Self {
            model,
            labels,
            dtype,
            parameters,
            objective,
            estimator,
            settings,
            description,
            adam,
            ema,
            clock,
            unread,
        })
    }

    /// Steps done.
    pub fn steps_done(&self) -> u64 {
        self.adam.steps
    }

    /// Wall-clock time of all steps, those before a checkpoint included, in seconds.
    pub fn seconds(&self) -> f64 {
        self.clock.seconds()
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

    /// Everything that the next step depends on. Later steps leave it alone: tensors are shared, and copied to the host
    /// where steps work in place, on a GPU.
    ///
    /// # Errors
    /// [`Error::NonFinite`] for weights that are no numbers: they are no state to go on from.
    pub fn state(&self) -> Result<State> {
        let zero = (&self.adam.master * 0.)?.sum_all()?.to_scalar::<f32>()?; // 0 if all are finite
        if zero != 0. {
            return Err(Error::NonFinite { at: format!("step {}: the weights", self.adam.steps), iter: 0 });
        }
        let named = |flat: &Tensor| self.parameters.named(&self.own(flat)?);
        Ok(State {
            step: self.adam.steps,
            seconds: self.seconds(),
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
        (self.clock, self.unread) = (Clock::after(state.seconds), None);
        Ok(())
    }

    /// The weights averaged with the `index`-th decay, by name, in f32; on the host if they are trained on a GPU.
    pub fn ema(&self, index: usize) -> Result<BTreeMap<String, Tensor>> {
        let ema = self.ema.get(index).ok_or_else(|| {
            let why = format!("there is no average number {index} among {}; set a decay", self.ema.len());
            Error::config("ema", why)
        })?;
        self.parameters.named(&self.own(&ema.average)?)
    }

    /// A flat buffer that later steps do not write to. It leaves a GPU whole: candle reads the whole buffer for each slice.
    fn own(&self, flat: &Tensor) -> Result<Tensor> {
        Ok(flat.to_device(&Device::Cpu)?)
    }

    /// An endless iterator of steps. After an error, which leaves weights and state as they were, it tries again.
    pub fn steps<'a>(&'a mut self, source: &'a dyn DataSource) -> impl Iterator<Item = Result<StepReport>> + 'a {
        std::iter::repeat_with(move || self.step(source))
    }

    /// How batches become [`Pairs`]: for threads that prepare them, see [`Ahead`](crate::Ahead).
    pub fn recipe(&self) -> Recipe {
        let Self { objective, labels, settings, .. } = self;
        Recipe { objective: objective.clone(), labels: *labels, seed: settings.seed, batch_size: settings.batch_size }
    }

    /// One step: draw, solve, differentiate, clip, look at the numbers, update weights and averages.
    ///
    /// # Errors
    /// [`Error::NonFinite`] for a loss or a gradient that is no number; whatever data, network and estimator return.
    /// Weights and state are then as they were.
    ///
    /// # Cost
    /// One synchronisation with the device.
    pub fn step(&mut self, source: &dyn DataSource) -> Result<StepReport> {
        self.clock.start();
        let recipe = self.recipe();
        let done = self.gradient(&mut |index| recipe.pairs(source, index)).and_then(|gradient| {
            let seen = self.look(self.adam.steps + 1)?;
            self.update(&gradient)?;
            Ok(seen)
        });
        let seconds = self.clock.stop();
        Ok(self.told(done?, seconds))
    }

    /// [`Trainer::step`] without looking at the numbers and without waiting for the device. `pairs` gives what
    /// [`Trainer::recipe`] makes of batch number `index`.
    ///
    /// A gradient that is no number goes into the weights here: the next [`Trainer::report`] says so, and
    /// [`Trainer::state`] refuses to be saved.
    ///
    /// # Errors
    /// Whatever data, network and estimator return. Weights and state are then as they were.
    pub fn advance(&mut self, pairs: &mut dyn FnMut(u64) -> Result<Pairs>) -> Result<()> {
        self.clock.start();
        let gradient = self.gradient(pairs)?;
        self.update(&gradient)
    }

    /// What has happened since the last report.
    ///
    /// # Errors
    /// [`Error::NonFinite`] where a loss or a gradient of these steps is no number: only an earlier checkpoint is good
    /// to go on from. [`Error::Config`] without a step since the last report.
    ///
    /// # Cost
    /// One synchronisation with the device.
    pub fn report(&mut self) -> Result<StepReport> {
        let seen = self.look(self.adam.steps);
        let seconds = self.clock.stop();
        Ok(self.told(seen?, seconds))
    }

    /// The gradient of the next step, clipped; its numbers stay unread.
    fn gradient(&mut self, pairs: &mut dyn FnMut(u64) -> Result<Pairs>) -> Result<Tensor> {
        let (step, accumulate) = (self.adam.steps, self.settings.accumulate as u64);
        let mut gradients = Gradients::new(&self.parameters)?;
        let mut last = None;
        for index in step * accumulate..(step + 1) * accumulate {
            let Pairs { levels, x0, eps, y } = pairs(index)?.to_device(self.parameters.device())?;
            let draw = self.objective.noisy(levels, x0, eps, y)?;
            let (parts, estimate) = self.differentiate(&draw, step, &mut gradients)?;
            let parts = (parts / accumulate as f64)?;
            let sum = match last {
                Some((sum, _)) => (sum + parts)?,
                None => parts,
            };
            last = Some((sum, estimate));
        }
        let (parts, estimate) =
            last.ok_or_else(|| Error::config("accumulate", "0 trains on nothing; use 1 or more"))?;
        let (gradient, norm) = clip_grad_norm(&gradients.flat()?, self.settings.max_grad_norm)?;
        let numbers = Tensor::cat(&[parts, norm.reshape(1)?], 0)?;
        self.unread = Some(Unread::add(self.unread.take(), numbers, &estimate)?);
        Ok(gradient)
    }

    fn update(&mut self, gradient: &Tensor) -> Result<()> {
        let lr = self.settings.lr.at(self.adam.steps);
        if !fused::step(&mut self.adam, &mut self.ema, gradient, lr)? {
            self.adam.step(gradient, lr)?;
            for ema in &mut self.ema {
                ema.update(&self.adam.master)?;
            }
        }
        self.parameters.scatter(&self.adam.master)
    }

    /// Reads what steps up to number `step` have left.
    fn look(&mut self, step: u64) -> Result<Seen> {
        let unread = self.unread.take().ok_or_else(|| Error::config("report", "no step since the last one"))?;
        unread.look(step)
    }

    fn told(&self, seen: Seen, seconds: f64) -> StepReport {
        let Settings { lr, batch_size, accumulate, .. } = &self.settings;
        let lr = lr.at(self.adam.steps.saturating_sub(1));
        seen.report(lr, batch_size * accumulate, seconds, self.parameters.device())
    }

    /// Adds the gradients of one batch and returns the parts of its loss, `(4)`: error, bound, Jacobian, consistency.
    fn differentiate(&self, draw: &Draw, step: u64, gradients: &mut Gradients) -> Result<(Tensor, Estimate)> {
        let scale = 1. / self.settings.accumulate as f64;
        // All passes of a step draw the same n and m, so that the step has one of each.
        let mut rng = rng::stream(self.settings.seed, Stream::Solver, step);
        let problem = self.model.prepare(&draw.xt.to_dtype(self.dtype)?, &draw.t, &draw.y)?;
        let estimate = {
            let _quick = fused::quick_launches(self.parameters.device())?;
            self.estimator.estimate(&problem, &mut rng)?
        };

        let weights = self.settings.supervision.weights(estimate.iterates.len())?;
        // Only what a loss looks at becomes a variable: each is a copy.
        let last = estimate.iterates.len().saturating_sub(1);
        let seen = |i: usize| weights[i] != 0. || (i == last && self.settings.consistency.is_some());
        let point = |(i, z)| if seen(i) { Var::from_tensor(z).map(Some) } else { Ok(None) };
        let points = estimate.iterates.iter().enumerate().map(point).collect::<candle_core::Result<Vec<_>>>()?;
        let (mut error, mut bound) = (zero(draw)?, zero(draw)?);
        for (point, &weight) in points.iter().zip(&weights) {
            let Some(point) = point.as_ref().filter(|_| weight != 0.) else { continue };
            let losses = self.objective.losses(draw, &problem.readout(point)?)?;
            error = (error + (losses.error.mean_all()? * weight)?)?;
            if let Some(terms) = losses.bound {
                bound = (bound + (terms.mean_all()? * weight)?)?;
            }
        }
        let mut consistency = zero(draw)?;
        if let (Some(penalty), Some(Some(point))) = (&self.settings.consistency, points.last()) {
            let neighbour = self.neighbour(penalty, draw, estimate.n + estimate.m)?;
            consistency = penalty.loss(&point.to_dtype(DType::F32)?, &neighbour)?;
        }
        let _quick = fused::quick_launches(self.parameters.device())?;
        let mut grads = ((&error + &bound)? + &consistency)?.backward()?;
        let cotangent = |point: &Option<Var>| point.as_ref().and_then(|p| grads.remove(p)).map(|g| g.detach());
        let cotangents: Vec<_> = points.iter().map(cotangent).collect();
        gradients.add(grads, scale)?;
        // Whatever still refers to the layers after the solve keeps their activations: let it go before the way back, the
        // parts of the loss by moving them.
        drop(points);
        let [error, bound, consistency] = [error, bound, consistency].map(|part| part.detach());
        estimate.pullback(&cotangents, &mut |grads| gradients.add(grads, scale))?;

        let jacobian = match &self.settings.jacobian {
            Some(penalty) => self.penalise(penalty, &problem, &estimate, &mut rng, gradients, scale)?,
            None => zero(draw)?,
        };
        let parts = [error, bound, jacobian, consistency].map(|part| part.detach());
        Ok((Tensor::stack(&parts, 0)?, estimate))
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
