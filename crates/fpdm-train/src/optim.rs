//! AdamW over flat buffers.

use candle_core::{DType, Tensor};
use fpdm_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// Settings of [`AdamW`], in PyTorch's sense. The learning rate comes with every step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Decay of the mean of gradients, in [0, 1).
    pub beta1: f64,
    /// Decay of the mean of squared gradients, in [0, 1).
    pub beta2: f64,
    /// Added to the root of the squares, above 0.
    pub eps: f64,
    /// Weight decay, decoupled: every step multiplies by `1 − lr·weight_decay`.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    /// The published training: (0.9, 0.999), 1e-8 and no weight decay.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0. }
    }
}

impl AdamWConfig {
    /// Refuses values outside their ranges.
    pub fn check(&self) -> Result<()> {
        for (field, value) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0. ..1.).contains(&value) {
                return Err(Error::config(field, format!("{value} is outside [0, 1); use 0.9 and 0.999")));
            }
        }
        if !(self.eps > 0. && self.eps.is_finite()) {
            return Err(Error::config("eps", format!("{} must be above 0; use 1e-8", self.eps)));
        }
        if !(self.weight_decay >= 0. && self.weight_decay.is_finite()) {
            return Err(Error::config("weight_decay", format!("{} must be 0 or more", self.weight_decay)));
        }
        Ok(())
    }
}

/// AdamW with f32 master weights and moments.
///
/// `m ← β₁m + (1 − β₁)g`, `v ← β₂v + (1 − β₂)g²`,
/// `p ← (1 − lr·wd)·p − lr·(m/(1 − β₁ᵗ)) / (√(v/(1 − β₂ᵗ)) + eps)`.
///
/// The network may work in bf16: masters are f32, so that updates below its resolution are not lost.
///
/// # Reference
/// Loshchilov and Hutter 2019, arXiv 1711.05101, Algorithm 2.
///
/// # Cost
/// Three buffers in f32, and a dozen elementwise operations on them whatever the number of tensors.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fpdm_train::{AdamW, AdamWConfig};
///
/// let mut adam = AdamW::new(AdamWConfig::default(), Tensor::new(&[1f32], &Device::Cpu)?)?;
/// adam.step(&Tensor::new(&[5f32], &Device::Cpu)?, 0.1)?;
/// let p = adam.master.to_vec1::<f32>()?[0];
/// assert!((p - 0.9).abs() < 1e-6); // the first step is lr long, whatever the gradient
/// # fpdm_core::Result::<()>::Ok(())
/// ```
#[derive(Clone, Debug)]
pub struct AdamW {
    /// Settings.
    pub config: AdamWConfig,
    /// The weights `(len)` in f32.
    pub master: Tensor,
    /// The mean of gradients, `(len)` in f32.
    pub exp_avg: Tensor,
    /// The mean of squared gradients, `(len)` in f32.
    pub exp_avg_sq: Tensor,
    /// Steps done.
    pub steps: u64,
}

impl AdamW {
    /// Starts from the weights `master`, `(len)` in f32.
    pub fn new(config: AdamWConfig, master: Tensor) -> Result<Self> {
        config.check()?;
        if master.rank() != 1 || master.dtype() != DType::F32 {
            return Err(Error::shape("AdamW: master weights", "(len) in F32", (master.dims(), master.dtype())));
        }
        let master = master.detach();
        Ok(Self { config, exp_avg: master.zeros_like()?, exp_avg_sq: master.zeros_like()?, master, steps: 0 })
    }

    /// One step against `gradient`, like the master weights.
    pub fn step(&mut self, gradient: &Tensor, lr: f64) -> Result<()> {
        if gradient.shape() != self.master.shape() {
            return Err(Error::shape("AdamW: gradient", self.master.dims(), gradient.dims()));
        }
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        let g = gradient.detach();
        let t = i32::try_from(self.steps + 1).unwrap_or(i32::MAX);
        let exp_avg = ((&self.exp_avg * beta1)? + (&g * (1. - beta1))?)?;
        let exp_avg_sq = ((&self.exp_avg_sq * beta2)? + (g.sqr()? * (1. - beta2))?)?;
        let root = (exp_avg_sq.sqrt()? / (1. - beta2.powi(t)).sqrt())?;
        let update = ((&exp_avg / (root + eps)?)? * (lr / (1. - beta1.powi(t))))?;
        let decayed = match weight_decay {
            0. => self.master.clone(),
            _ => (&self.master * (1. - lr * weight_decay))?,
        };
        self.master = (decayed - update)?;
        (self.exp_avg, self.exp_avg_sq) = (exp_avg, exp_avg_sq);
        self.steps += 1;
        Ok(())
    }
}

fn norm(gradient: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if gradient.device().is_cuda() {
        return Ok(fpdm_kernels::cuda::norm(gradient)?);
    }
    Ok(gradient.sqr()?.sum_all()?.sqrt()?)
}

/// The gradient scaled to a norm of at most `max_norm`, as PyTorch's `clip_grad_norm_`, and the norm `‖g‖₂` before it, a
/// scalar on the gradient's device.
///
/// With `None` it is measured and passed on. A gradient that is not finite has a norm that is not finite.
///
/// # Reference
/// Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063, Algorithm 1.
///
/// # Cost
/// One reduction. Nothing waits for the device: the norm is read by whoever wants to know it.
pub fn clip_grad_norm(gradient: &Tensor, max_norm: Option<f64>) -> Result<(Tensor, Tensor)> {
    let norm = norm(gradient)?;
    match max_norm {
        Some(max) if max.is_nan() || max <= 0. => {
            Err(Error::config("max_norm", format!("{max} must be above 0, or absent")))
        }
        Some(max) => {
            let scale = ((&norm + 1e-6)?.recip()? * max)?.minimum(1f64)?;
            Ok((gradient.broadcast_mul(&scale)?, norm))
        }
        None => Ok((gradient.clone(), norm)),
    }
}
