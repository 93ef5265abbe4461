//! The settings that made a picture.

use anyhow::{Result, bail};
use fpdm_core::{Normalisation, Parameterization, Schedule};
use serde::{Deserialize, Serialize};

use super::flags::{List, Place};
use super::network::Opened;

/// All that a picture depends on besides its number and label: stored in its PNG.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) place: Place,
    pub(crate) prediction: Parameterization,
    pub(crate) schedule: Schedule,
    pub(crate) latent_mean: List,
    pub(crate) latent_std: List,
    pub(crate) sampler: String,
    pub(crate) spacing: String,
    pub(crate) steps: usize,
    pub(crate) budget: String,
    pub(crate) allocation: String,
    pub(crate) solver: String,
    pub(crate) reuse: String,
    pub(crate) guidance: f64,
    pub(crate) guided_channels: Option<usize>,
    pub(crate) guidance_interval: Vec<f64>,
    pub(crate) unconditional_share: f64,
    pub(crate) iteration_guidance: f64,
    pub(crate) iteration_guidance_early: usize,
    pub(crate) dtype: String,
    pub(crate) seed: u64,
}

impl Settings {
    /// Refuses what `diffusion.json` says otherwise: weights cannot be used for what they were not trained for.
    pub(crate) fn agree(&mut self, opened: &Opened) -> Result<()> {
        self.latents().check()?;
        self.latents().check_channels(opened.config.in_channels)?;
        let Some(said) = &opened.diffusion else { return Ok(()) };
        let refuse = |flag: &str, given: &dyn std::fmt::Display, said: &dyn std::fmt::Display| {
            bail!(
                "{flag} {given} contradicts diffusion.json beside the weights, which says {said}; leave the flag out, \
                 or correct the file"
            )
        };
        if self.prediction != said.prediction {
            return refuse("--prediction", &self.prediction, &said.prediction);
        }
        if self.schedule != said.schedule {
            return refuse("--schedule", &self.schedule, &said.schedule);
        }
        let Normalisation { mean, std } = said.latents.clone();
        for (flag, given, said) in
            [("--latent-mean", &mut self.latent_mean, List(mean)), ("--latent-std", &mut self.latent_std, List(std))]
        {
            if !given.is_near(&said.0) {
                return refuse(flag, given, &said);
            }
            *given = said;
        }
        Ok(())
    }

    /// What was done to the codec's latents before training.
    pub(crate) fn latents(&self) -> Normalisation {
        Normalisation { mean: self.latent_mean.0.clone(), std: self.latent_std.0.clone() }
    }
}
