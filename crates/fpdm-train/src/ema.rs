//! Averages of weights.

use candle_core::Tensor;
use fpdm_core::{Error, Result};

/// An exponential moving average of flat weights, `ema ← decay·ema + (1 − decay)·p` after every step.
///
/// # Reference
/// Ho, Jain and Abbeel 2020, arXiv 2006.11239, section 4; Karras et al. 2024, arXiv 2312.02696, section 3, on the choice of the decay.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fpdm_train::Ema;
///
/// let mut ema = Ema::new(0.75, &Tensor::new(&[0f32], &Device::Cpu)?)?;
/// ema.update(&Tensor::new(&[4f32], &Device::Cpu)?)?;
/// assert_eq!(ema.average.to_vec1::<f32>()?, [1.]);
/// # fpdm_core::Result::<()>::Ok(())
/// ```
#[derive(Clone, Debug)]
pub struct Ema {
    /// The share of the old average that is kept, in [0, 1).
    pub decay: f64,
    /// The average, `(len)` in f32.
    pub average: Tensor,
}

impl Ema {
    /// Starts at `weights`.
    pub fn new(decay: f64, weights: &Tensor) -> Result<Self> {
        if !(0. ..1.).contains(&decay) {
            return Err(Error::config(
                "ema",
                format!("decay {decay} is outside [0, 1); the published value is 0.9999"),
            ));
        }
        // A copy: where steps overwrite the weights, the average must not be the same memory.
        Ok(Self { decay, average: weights.detach().copy()? })
    }

    /// Takes in the weights after a step.
    pub fn update(&mut self, weights: &Tensor) -> Result<()> {
        self.average = ((&self.average * self.decay)? + (weights.detach() * (1. - self.decay))?)?;
        Ok(())
    }
}
