//! From noise to a latent, step by step.

use std::time::Instant;

use candle_core::Tensor;
use fpdm_core::{Denoiser, Result};

use crate::{Account, Cost, Noise, Plan, Step, StepRule};

/// What one step leaves.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The step that was taken.
    pub step: Step,
    /// The latent at [`Step::to`], `(B, C, H, W)`.
    pub x: Tensor,
    /// The clean latent as the denoiser sees it at [`Step::from`]: a preview, `(B, C, H, W)`.
    pub x0: Tensor,
}

/// An iterator over the steps of one trajectory of a batch. After an error it ends.
///
/// # Cost
///
/// What the rule's evaluations cost, and one wait for the device a step.
pub struct Sampler<'a, D> {
    plan: &'a Plan,
    rule: Box<dyn StepRule + 'a>,
    denoiser: D,
    noise: Box<dyn Noise + 'a>,
    x: Tensor,
    taken: usize,
    failed: bool,
    seconds: f64,
}

impl<'a, D: Denoiser + Account> Sampler<'a, D> {
    /// A trajectory from `x`, `(B, C, H, W)`, pure noise of deviation 1. `x` keeps its dtype, whatever the network's.
    ///
    /// # Errors
    ///
    /// What [`StepRule::check`] says about `plan`.
    pub fn new(
        plan: &'a Plan,
        rule: Box<dyn StepRule + 'a>,
        denoiser: D,
        x: Tensor,
        noise: Box<dyn Noise + 'a>,
    ) -> Result<Self> {
        rule.check(plan)?;
        Ok(Self { plan, rule, denoiser, noise, x, taken: 0, failed: false, seconds: 0. })
    }

    /// Takes the steps that are left and returns the latent.
    pub fn finish(&mut self) -> Result<Tensor> {
        for step in self.by_ref() {
            step?;
        }
        Ok(self.x.clone())
    }

    /// What was spent so far for the first image; all spend the same, but for policies
    /// [`per_image`](crate::FixedPointDenoiser::per_image). Seconds are those of the batch's steps, not of what was done
    /// between them.
    pub fn cost(&self) -> Cost {
        self.costs().swap_remove(0)
    }

    /// What was spent so far for each image of the batch.
    pub fn costs(&self) -> Vec<Cost> {
        let costs = self.denoiser.costs();
        let of = |i: usize| costs.get(i).or(costs.first()).cloned().unwrap_or_default();
        let images = self.x.dims().first().copied().unwrap_or(1).max(1);
        (0..images).map(|i| Cost { seconds: self.seconds, ..of(i) }).collect()
    }

    /// The denoiser, with its ledger.
    pub fn denoiser(&self) -> &D {
        &self.denoiser
    }

    fn advance(&mut self, step: Step) -> Result<Progress> {
        let begun = Instant::now();
        let stepped = self.rule.step(&mut self.denoiser, &self.x, &step, &mut *self.noise)?;
        stepped.x.device().synchronize()?;
        self.seconds += begun.elapsed().as_secs_f64();
        self.x = stepped.x.clone();
        Ok(Progress { step, x: stepped.x, x0: stepped.x0 })
    }
}

impl<D: Denoiser + Account> Iterator for Sampler<'_, D> {
    type Item = Result<Progress>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let step = *self.plan.steps().get(self.taken)?;
        self.taken += 1;
        let progress = self.advance(step);
        self.failed = progress.is_err();
        Some(progress)
    }
}
