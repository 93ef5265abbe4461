//! The settings that make a picture.

use clap::Args;
use serde::{Deserialize, Serialize};

/// All that a picture depends on besides its number: stored in its PNG.
#[derive(Args, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Weights of the Hub, org/name.
    #[arg(long, conflicts_with = "weights")]
    pub(crate) hub: Option<String>,
    /// Branch, tag or commit of --hub.
    #[arg(long, default_value = "main")]
    pub(crate) revision: String,
    /// A weight file, or a folder with config.json and one.
    #[arg(long)]
    pub(crate) weights: Option<String>,
    /// pixels, or a latent codec: a Hub repository, a folder or a file. [default: pixels for 3 channels,
    /// madebyollin/taesd for 4]
    #[arg(long)]
    pub(crate) codec: Option<String>,
    /// What the network predicts: eps, x0, v or flow.
    #[arg(long, default_value = "v")]
    pub(crate) prediction: String,
    /// The schedule it was trained on: linear, cosine, zero-snr or flow.
    #[arg(long, default_value = "zero-snr")]
    pub(crate) schedule: String,
    /// Which times: published, leading or trailing.
    #[arg(long, default_value = "published")]
    pub(crate) spacing: String,
    /// ddpm[:learned|small|large], ddim[:eta], dpmpp2m, unipc2, euler, heun, flow-euler or flow-heun.
    #[arg(long, default_value = "ddim")]
    pub(crate) sampler: String,
    /// Noise levels.
    #[arg(long, default_value_t = 20)]
    pub(crate) steps: usize,
    /// Block passes a picture, pre + applications × group + post a solve, over both branches of guidance; or
    /// Napplications, or Neach a solve. [default: 4each]
    #[arg(long)]
    pub(crate) budget: Option<String>,
    /// How it is divided; early is noisy: uniform, early, late, linear:EARLY:LATE, geometric:EARLY:LATE,
    /// published-early, published-late, table:FILE or adaptive[:threshold].
    #[arg(long, default_value = "uniform")]
    pub(crate) allocation: String,
    /// picard[:damp], anderson[:memory] or broyden[:memory].
    #[arg(long, default_value = "picard")]
    pub(crate) solver: String,
    /// Where solves start: fresh, reuse, blend[:keep] or extrapolate.
    #[arg(long, default_value = "reuse")]
    pub(crate) reuse: String,
    /// Scale of classifier-free guidance; 1 is none and costs nothing.
    #[arg(long, default_value_t = 1.)]
    pub(crate) guidance: f64,
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
