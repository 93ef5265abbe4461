use candle_core::Tensor;
use fpdm_core::{Denoiser, Result};

use super::{StepRule, Stepped, carry};
use crate::{Noise, Step};

/// Euler's step of the probability flow: `x' = alpha'·x0 + sigma'·eps`.
///
/// In `x/alpha` over `sigma/alpha` the slope is `eps`, on the straight path it is `eps − x0`; Euler's step along either
/// is this same formula, so there is one rule for both, and it is exact at pure noise, where `sigma/alpha` is infinite.
///
/// # Reference
///
/// Karras et al. 2022, arXiv 2206.00364, equation 3; Liu, Gong and Liu 2022, arXiv 2209.03003, section 2.2.
///
/// # Cost
///
/// One solve a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Euler;

impl StepRule for Euler {
    fn step(&mut self, d: &mut dyn Denoiser, x: &Tensor, step: &Step, _: &mut dyn Noise) -> Result<Stepped> {
        let p = d.denoise(x, step.from)?;
        Ok(Stepped { x: carry(&p, step.to)?, x0: p.x0 })
    }
}
