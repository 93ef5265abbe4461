//! Classifier-free guidance: one denoiser made of two.

use candle_core::Tensor;
use fpdm_core::{Denoiser, Error, Level, Prediction, Result};

use crate::{Account, Cost};

/// How far to go beyond the conditional prediction, in which channels and at which noise levels.
///
/// # Reference
///
/// Ho and Salimans 2022, arXiv 2207.12598, equation 6 with `scale = 1 + w`. The interval: Kynkäänniemi et al. 2024,
/// arXiv 2404.07724, equation 5.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// 1 is the conditional prediction, 0 the unconditional one.
    pub scale: f64,
    /// Only the first so many channels are guided; the published code guides 3 of 4. `None` is all.
    pub channels: Option<usize>,
    /// The least and the most `sigma` at which it acts; (0, 1) is everywhere.
    pub interval: (f64, f64),
}

impl Default for Guidance {
    /// None.
    fn default() -> Self {
        Self { scale: 1., channels: None, interval: (0., 1.) }
    }
}

impl Guidance {
    /// Whether the unconditional branch is needed at `level`.
    ///
    /// ```
    /// use fpdm_core::Level;
    /// use fpdm_sample::Guidance;
    ///
    /// let level = Level { t: 500., alpha: 0.6, sigma: 0.8 };
    /// assert!(!Guidance::default().acts(level));
    /// assert!(Guidance { scale: 4., ..Default::default() }.acts(level));
    /// assert!(!Guidance { scale: 4., interval: (0., 0.5), ..Default::default() }.acts(level));
    /// ```
    pub fn acts(&self, level: Level) -> bool {
        let (least, most) = self.interval;
        // sigma may pass 1 by rounding alone.
        self.scale != 1. && level.sigma >= least && level.sigma <= most + 1e-12
    }

    /// Refuses settings without a meaning, for latents of `channels` channels.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] with the field and the fix.
    pub fn check(&self, channels: usize) -> Result<()> {
        if !self.scale.is_finite() {
            return Err(Error::config("guidance", format!("{} is no scale; use 1 for none, 1.5 to 4", self.scale)));
        }
        let (least, most) = self.interval;
        if !(0. <= least && least <= most && most <= 1.) {
            let why = format!("{least} to {most} is no interval of sigma; use 0 ≤ least ≤ most ≤ 1");
            return Err(Error::config("guidance interval", why));
        }
        match self.channels {
            Some(n) if n == 0 || n > channels => {
                let why = format!("{n} of {channels} channels cannot be guided; use 1 to {channels}");
                Err(Error::config("guided channels", why))
            }
            _ => Ok(()),
        }
    }

    fn mix(&self, with: &Tensor, without: &Tensor) -> Result<Tensor> {
        let beyond = |c: &Tensor, u: &Tensor| -> Result<Tensor> { Ok((u + ((c - u)? * self.scale)?)?) };
        match self.channels {
            Some(n) if n < with.dim(1)? => {
                let rest = with.dim(1)? - n;
                let guided = beyond(&with.narrow(1, 0, n)?, &without.narrow(1, 0, n)?)?;
                Ok(Tensor::cat(&[guided, with.narrow(1, n, rest)?], 1)?)
            }
            _ => beyond(with, without),
        }
    }
}

/// A denoiser with labels and one without, each with its own solutions, policy and ledger.
///
/// Both parts of a [`Prediction`] are guided alike, which is the same as guiding the network's output, whatever it
/// predicts; the learned variance is the conditional one's. Where guidance does not act, the second denoiser is not
/// asked and costs nothing.
pub struct Guided<C, U> {
    /// With labels.
    pub conditional: C,
    /// With null labels.
    pub unconditional: U,
    /// How they are combined.
    pub guidance: Guidance,
}

impl<C: Denoiser, U: Denoiser> Denoiser for Guided<C, U> {
    fn denoise(&mut self, x: &Tensor, level: Level) -> Result<Prediction> {
        let with = self.conditional.denoise(x, level)?;
        if !self.guidance.acts(level) {
            return Ok(with);
        }
        let without = self.unconditional.denoise(x, level)?;
        Ok(Prediction {
            x0: self.guidance.mix(&with.x0, &without.x0)?,
            eps: self.guidance.mix(&with.eps, &without.eps)?,
            log_var: with.log_var,
        })
    }
}

impl<C: Account, U: Account> Account for Guided<C, U> {
    fn costs(&self) -> Vec<Cost> {
        let (with, without) = (self.conditional.costs(), self.unconditional.costs());
        // One branch may spend the same for all images where the other does not.
        let images = with.len().max(without.len());
        let of = |costs: &[Cost], i: usize| costs.get(i).or(costs.first()).cloned().unwrap_or_default();
        (0..images).map(|i| of(&with, i).and(of(&without, i))).collect()
    }
}
