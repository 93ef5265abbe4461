//! What is trained, from the command line.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use clap::{Args, ValueEnum};
use fpdm_core::{Flow, Parameterization, Vp};
use fpdm_train::{Consistency, JacobianPenalty, Objective, Supervision, Times, Weighting};
use serde_json::{Value, json};

/// What is trained.
#[derive(Args, Debug)]
pub(crate) struct LossOptions {
    /// v, eps, x0 or flow.
    #[arg(long, default_value = "v")]
    pub prediction: Parameterization,
    /// Trains the prediction alone and not the variance.
    #[arg(long)]
    pub no_learned_variance: bool,
    /// whole, continuous or logit-normal [default: continuous for flow, else whole]
    #[arg(long)]
    pub times: Option<TimesName>,
    /// The mean of the logit of logit-normal times; above 0 is more noise.
    #[arg(long, default_value_t = 0., allow_hyphen_values = true)]
    pub logit_mean: f64,
    /// The deviation of the logit of logit-normal times.
    #[arg(long, default_value_t = 1.)]
    pub logit_scale: f64,
    /// uniform, p2, snr, truncated-snr or min-snr.
    #[arg(long, default_value = "uniform")]
    pub weighting: String,
    /// The probability that a label is dropped [default: 0.1 with classes]
    #[arg(long)]
    pub label_dropout: Option<f64>,
    /// Looks at every iterate with gradient, each discounted by so much to the next (0.8, say).
    #[arg(long)]
    pub supervise: Option<f64>,
    /// The weight of a penalty on the map's Jacobian (1, say).
    #[arg(long)]
    pub jacobian: Option<f64>,
    /// The weight of a penalty on what changes from one time to its neighbour (0.1, say).
    #[arg(long)]
    pub consistency: Option<f64>,
    /// How far that neighbour is, in units of time.
    #[arg(long, default_value_t = 20.)]
    pub consistency_gap: f64,
}

/// The names of [`Times`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TimesName {
    /// Whole times.
    Whole,
    /// All times alike.
    Continuous,
    /// Most in the middle.
    LogitNormal,
}

impl LossOptions {
    /// Whether the variance is learned.
    pub(crate) fn learns_variance(&self) -> bool {
        self.prediction != Parameterization::Flow && !self.no_learned_variance
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

    /// The objective, for a network with or without classes.
    pub(crate) fn objective(&self, classes: bool) -> Result<Objective> {
        let weighting = match self.weighting.as_str() {
            "uniform" => Weighting::Uniform,
            "p2" => Weighting::P2 { k: 1., gamma: 0.5 },
            "snr" => Weighting::Snr,
            "truncated-snr" => Weighting::TruncatedSnr,
            "min-snr" => Weighting::MinSnr(5.),
            other => bail!("--weighting: `{other}` is none of uniform, p2, snr, truncated-snr, min-snr"),
        };
        let flow = self.prediction == Parameterization::Flow;
        let times = match self.times {
            None if flow => Times::Continuous,
            None | Some(TimesName::Whole) => Times::Whole,
            Some(TimesName::Continuous) => Times::Continuous,
            Some(TimesName::LogitNormal) => Times::LogitNormal { mean: self.logit_mean, scale: self.logit_scale },
        };
        ensure!(
            times == Times::Whole || !self.learns_variance(),
            "--times: a learned variance is for whole times; add --no-learned-variance"
        );
        let label_dropout = self.label_dropout.unwrap_or(if classes { 0.1 } else { 0. });
        let base = Objective { weighting, times, label_dropout, ..Objective::flow() };
        if flow {
            return Ok(Objective { schedule: Arc::new(Flow::default()), ..base });
        }
        let vp = self.schedule()?;
        let variance = self.learns_variance().then(|| vp.clone());
        Ok(Objective { schedule: Arc::new(vp), parameterization: self.prediction, variance, ..base })
    }

    /// Which iterates the loss looks at.
    pub(crate) fn supervision(&self) -> Supervision {
        self.supervise.map_or(Supervision::Last, Supervision::Discounted)
    }

    /// The penalty on the Jacobian, if there is one.
    pub(crate) fn jacobian_penalty(&self) -> Option<JacobianPenalty> {
        self.jacobian.map(|weight| JacobianPenalty { weight, ..Default::default() })
    }

    /// The penalty on what changes with time, if there is one.
    pub(crate) fn consistency_penalty(&self) -> Option<Consistency> {
        self.consistency.map(|weight| Consistency { weight, gap: self.consistency_gap })
    }

    /// What must be the same on resuming.
    pub(crate) fn description(&self, objective: &Objective) -> Value {
        json!({
            "prediction": self.prediction,
            "schedule": self.schedule_name(),
            "learned_variance": self.learns_variance(),
            "times": objective.times,
            "weighting": self.weighting,
            "label_dropout": objective.label_dropout,
        })
    }
}
