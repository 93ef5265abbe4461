//! The flags that make a picture. What is left out comes from `diffusion.json`.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;
use clap::Args;
use fpdm_core::{Parameterization, Schedule};
use serde::{Deserialize, Serialize};

use super::network::Opened;
use super::settings::Settings;

/// Where weights and codec are. Without weights, the ones that come with the command.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Place {
    /// Weights of the Hub, org/name.
    #[arg(long, conflicts_with = "weights")]
    pub(crate) hub: Option<String>,
    /// Branch, tag or commit of --hub.
    #[arg(long, default_value = "main")]
    pub(crate) revision: String,
    /// A weight file, or a folder with config.json and one.
    #[arg(long)]
    pub(crate) weights: Option<String>,
    /// pixels, or a latent codec: a Hub repository, a folder or a file. [default: the one that comes with the command if
    /// its weights do, else diffusion.json's, else pixels for 3 channels and madebyollin/taesd for 4]
    #[arg(long)]
    pub(crate) codec: Option<String>,
}

impl Place {
    /// Whether the weights are those that come with the command.
    pub(crate) fn is_default(&self) -> bool {
        self.hub.is_none() && self.weights.is_none()
    }
}

/// What a picture depends on besides its number and label.
#[derive(Args, Clone, Debug)]
pub(crate) struct Flags {
    #[command(flatten)]
    pub(crate) place: Place,
    /// What the network predicts: eps, x0, v or flow. [default: diffusion.json's; without one v, and eps for a DiT]
    #[arg(long, help_heading = "What the weights were trained for")]
    pub(crate) prediction: Option<Parameterization>,
    /// The schedule: linear, cosine, zero-snr, flow, or JSON as in diffusion.json. [default: diffusion.json's; without
    /// one zero-snr, and linear for a DiT]
    #[arg(long, help_heading = "What the weights were trained for")]
    pub(crate) schedule: Option<Schedule>,
    /// What was subtracted from the latents: one number, or one a channel. [default: diffusion.json's, else 0]
    #[arg(long, value_name = "NUMBERS", help_heading = "What the weights were trained for")]
    pub(crate) latent_mean: Option<List>,
    /// What the latents were divided by then: one number, or one a channel. [default: diffusion.json's, else 1]
    #[arg(long, value_name = "NUMBERS", help_heading = "What the weights were trained for")]
    pub(crate) latent_std: Option<List>,
    /// ddpm[:learned|small|large], ddim[:eta], dpmpp2m, unipc2, euler, heun, flow-euler or flow-heun. [default: as
    /// recommended, else ddim]
    #[arg(long)]
    pub(crate) sampler: Option<String>,
    /// Which times: published, leading or trailing. [default: as recommended, else published]
    #[arg(long)]
    pub(crate) spacing: Option<String>,
    /// Noise levels. [default: as recommended, else 20]
    #[arg(long)]
    pub(crate) steps: Option<usize>,
    /// Block passes a picture, pre + applications × group + post a solve, over both branches of guidance; or
    /// Napplications, or Neach a solve. [default: as recommended, else 4each]
    #[arg(long)]
    pub(crate) budget: Option<String>,
    /// How it is divided; early is noisy: uniform, early, late, linear:EARLY:LATE, geometric:EARLY:LATE,
    /// published-early, published-late, table:FILE or adaptive[:threshold]. [default: as recommended, else uniform]
    #[arg(long)]
    pub(crate) allocation: Option<String>,
    /// picard[:damp], anderson[:memory] or broyden[:memory]. [default: as recommended, else picard]
    #[arg(long)]
    pub(crate) solver: Option<String>,
    /// Where solves start: fresh, reuse, blend[:keep] or extrapolate. [default: as recommended, else reuse]
    #[arg(long)]
    pub(crate) reuse: Option<String>,
    /// Scale of classifier-free guidance; 1 is none and costs nothing. [default: as recommended, else 1]
    #[arg(long)]
    pub(crate) guidance: Option<f64>,
    /// Guide only the first so many channels; the published code guides 3.
    #[arg(long, value_name = "N")]
    pub(crate) guided_channels: Option<usize>,
    /// Guide only where sigma is between these.
    #[arg(long, num_args = 2, value_names = ["LEAST", "MOST"], default_values_t = [0., 1.])]
    pub(crate) guidance_interval: Vec<f64>,
    /// Applications of an unconditional solve over those of a conditional one.
    #[arg(long, default_value_t = 1.)]
    pub(crate) unconditional_share: f64,
    /// Scale of iteration guidance, away from the iterate at --iteration-guidance-early; 1 is none.
    #[arg(long, default_value_t = 1.)]
    pub(crate) iteration_guidance: f64,
    /// Applications of the iterate that iteration guidance goes away from.
    #[arg(long, default_value_t = 1)]
    pub(crate) iteration_guidance_early: usize,
    /// f32, f16 or bf16 for the network's weights.
    #[arg(long, default_value = "f32")]
    pub(crate) dtype: String,
    /// Seed of all noise and labels.
    #[arg(long, default_value_t = 42)]
    pub(crate) seed: u64,
}

impl Flags {
    /// With what `diffusion.json` says, and the defaults.
    ///
    /// # Errors
    ///
    /// Where a flag contradicts what the file says of the training.
    pub(crate) fn settle(&self, opened: &Opened) -> Result<Settings> {
        let flags = self.clone();
        let said = opened.said();
        let advice = said.recommended;
        let or = |flag: Option<String>, advice: Option<String>, default: &str| {
            flag.or(advice).unwrap_or_else(|| default.to_owned())
        };
        let mut settings = Settings {
            place: flags.place,
            prediction: flags.prediction.unwrap_or(said.prediction),
            schedule: flags.schedule.unwrap_or(said.schedule),
            latent_mean: flags.latent_mean.unwrap_or(List(said.latents.mean)),
            latent_std: flags.latent_std.unwrap_or(List(said.latents.std)),
            sampler: or(flags.sampler, advice.sampler, "ddim"),
            spacing: or(flags.spacing, advice.spacing, "published"),
            steps: flags.steps.or(advice.steps).unwrap_or(20),
            budget: or(flags.budget, advice.budget, opened.usual_budget()),
            allocation: or(flags.allocation, advice.allocation, "uniform"),
            solver: or(flags.solver, advice.solver, "picard"),
            reuse: or(flags.reuse, advice.reuse, "reuse"),
            guidance: flags.guidance.or(advice.guidance).unwrap_or(1.),
            guided_channels: flags.guided_channels,
            guidance_interval: flags.guidance_interval,
            unconditional_share: flags.unconditional_share,
            iteration_guidance: flags.iteration_guidance,
            iteration_guidance_early: flags.iteration_guidance_early,
            dtype: flags.dtype,
            seed: flags.seed,
        };
        settings.agree(opened)?;
        Ok(settings)
    }
}

/// Numbers with commas between.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct List(pub(crate) Vec<f64>);

impl List {
    /// Equal, but for what writing and reading again may change.
    pub(crate) fn is_near(&self, other: &[f64]) -> bool {
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-12 * a.abs();
        self.0.len() == other.len() && self.0.iter().zip(other).all(near)
    }
}

impl FromStr for List {
    type Err = std::num::ParseFloatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split(',').map(|number| number.trim().parse()).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(f64::to_string).collect();
        f.write_str(&numbers.join(","))
    }
}
