//! What a network is trained to do.

mod bound;
mod consistency;
mod jacobian;
mod pairs;
mod supervision;
mod times;
mod weighting;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use fpdm_core::dit::Labels;
use fpdm_core::{Error, Flow, Level, NoiseSchedule, Parameterization, Result, Vp, diffuse};

pub use self::bound::variational_bound;
pub use self::consistency::Consistency;
pub use self::jacobian::JacobianPenalty;
pub use self::pairs::{Pairs, Recipe};
pub use self::supervision::Supervision;
pub use self::times::Times;
pub use self::weighting::Weighting;
use crate::Batch;

/// From clean latents to a loss: draws times and noise, drops labels, weighs the error.
///
/// # Reference
/// Ho, Jain and Abbeel 2020, arXiv 2006.11239, Algorithm 1; label dropout: Ho and Salimans 2022, arXiv 2207.12598,
/// Algorithm 1.
#[derive(Clone)]
pub struct Objective {
    /// Signal and noise at a time.
    pub schedule: Arc<dyn NoiseSchedule + Send + Sync>,
    /// What the network predicts.
    pub parameterization: Parameterization,
    /// What an error counts.
    pub weighting: Weighting,
    /// Whose posterior the learned variance belongs to; `None` for a network without.
    pub variance: Option<Vp>,
    /// Which times are trained.
    pub times: Times,
    /// The probability that a label is replaced by the null label, in [0, 1].
    pub label_dropout: f64,
}

impl Objective {
    /// The objective of the published training, but for its weighting: `v` on the linear schedule with zero terminal
    /// SNR, learned variance, label dropout of 0.1; every time counts, the last too.
    pub fn published() -> Result<Self> {
        let schedule = Vp::default().zero_terminal_snr()?;
        Ok(Self {
            variance: Some(schedule.clone()),
            schedule: Arc::new(schedule),
            parameterization: Parameterization::V,
            weighting: Weighting::Uniform,
            times: Times::Whole,
            label_dropout: 0.1,
        })
    }

    /// Rectified flow without learned variance, label dropout of 0.1.
    pub fn flow() -> Self {
        Self {
            schedule: Arc::new(Flow::default()),
            parameterization: Parameterization::Flow,
            weighting: Weighting::Uniform,
            variance: None,
            times: Times::Continuous,
            label_dropout: 0.1,
        }
    }

    /// Refuses settings that do not fit each other: every level that can be drawn at the ends must have a weight.
    pub fn check(&self) -> Result<()> {
        self.weighting.check()?;
        if !(0. ..=1.).contains(&self.label_dropout) {
            return Err(Error::config("label_dropout", format!("{} is outside [0, 1]; use 0.1", self.label_dropout)));
        }
        self.times.check()?;
        if self.variance.is_some() && self.times != Times::Whole {
            return Err(Error::config("times", "a learned variance is for whole times; use whole, or no variance"));
        }
        let (first, last) = self.schedule.span();
        for t in [first, last] {
            let level = self.schedule.level(t)?;
            self.weighting.weight(level, self.parameterization)?;
            if let Some(vp) = &self.variance {
                let own = vp.level(t)?;
                if (own.alpha - level.alpha).abs() > 1e-9 {
                    return Err(Error::config("variance", format!("it is of another schedule: {own:?}, {level:?}")));
                }
                let one = Tensor::ones(1, DType::F64, &Device::Cpu)?;
                self.parameterization.split(&[level], &one, &one)?;
            }
        }
        Ok(())
    }

    /// [`Objective::pairs`], mixed to noisy latents where the batch is.
    pub fn draw(&self, batch: &Batch, labels: Labels, seed: u64) -> Result<Draw> {
        let Pairs { levels, x0, eps, y } = self.pairs(batch, labels, seed)?;
        self.noisy(levels, x0, eps, y)
    }

    /// The training pairs of clean latents `x0` `(B, C, H, W)` and noise `eps` at given levels.
    pub fn noisy(&self, levels: Vec<Level>, x0: Tensor, eps: Tensor, y: Tensor) -> Result<Draw> {
        let xt = diffuse(&levels, &x0, &eps)?;
        let target = self.parameterization.target(&levels, &x0, &eps)?;
        let t: Vec<f32> = levels.iter().map(|level| level.t as f32).collect();
        let t = Tensor::new(t, x0.device())?;
        let weights: Vec<f64> =
            levels.iter().map(|&level| self.weighting.weight(level, self.parameterization)).collect::<Result<_>>()?;
        let weights = Tensor::new(weights, &Device::Cpu)?.to_dtype(x0.dtype())?.to_device(x0.device())?;
        Ok(Draw { levels, t, x0, eps, xt, target, weights, y })
    }

    /// The loss of every sample for the network's `output`, `(B, C, H, W)` or, with learned variance, `(B, 2C, H, W)`.
    ///
    /// # Errors
    /// [`Error::Shape`] where the output has other channels than the objective needs.
    pub fn losses(&self, draw: &Draw, output: &Tensor) -> Result<Losses> {
        let (b, c, h, w) = draw.x0.dims4()?;
        let channels = if self.variance.is_some() { 2 * c } else { c };
        if output.dims() != [b, channels, h, w] {
            let what = "the network's output; `learn_sigma` of the network and the objective's variance go together";
            return Err(Error::shape(what, [b, channels, h, w], output.dims()));
        }
        let output = output.to_dtype(draw.x0.dtype())?;
        let prediction = output.narrow(1, 0, c)?;
        let squares = (&draw.target - &prediction)?.sqr()?.flatten_from(1)?.mean(1)?;
        let error = (squares * &draw.weights)?;
        let bound = match &self.variance {
            None => None,
            Some(vp) => {
                let variance = output.narrow(1, c, c)?;
                let parts = (&prediction, &variance);
                Some(variational_bound(vp, self.parameterization, &draw.levels, (&draw.x0, &draw.xt), parts)?)
            }
        };
        Ok(Losses { error, bound })
    }
}

/// A batch on its way into the network; all `(B, C, H, W)` tensors in f32.
#[derive(Clone, Debug)]
pub struct Draw {
    /// The noise level of each sample.
    pub levels: Vec<Level>,
    /// Its time, `(B)`.
    pub t: Tensor,
    /// Clean latents.
    pub x0: Tensor,
    /// Noise.
    pub eps: Tensor,
    /// Noisy latents.
    pub xt: Tensor,
    /// What the network should say.
    pub target: Tensor,
    /// What its error counts, `(B)`.
    pub weights: Tensor,
    /// Labels, some of them null.
    pub y: Tensor,
}

/// The loss of every sample, `(B)`.
#[derive(Clone, Debug)]
pub struct Losses {
    /// The weighted mean square of the prediction's error.
    pub error: Tensor,
    /// The variational bound in bits a dimension, where the variance is learned.
    pub bound: Option<Tensor>,
}

impl Losses {
    /// The mean over the batch of the sum of both.
    pub fn total(&self) -> Result<Tensor> {
        let sum = match &self.bound {
            Some(bound) => (&self.error + bound)?,
            None => self.error.clone(),
        };
        Ok(sum.mean_all()?)
    }
}
