use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Flow, NoiseSchedule, Result, Vp};

/// A noise schedule as data; [`NoiseSchedule`] is one at work. Missing fields take the published values.
///
/// As text it is `linear`, `cosine`, `zero-snr` or `flow` with the published values, and JSON with others.
///
/// ```
/// use fpdm_core::Schedule;
///
/// for text in ["linear", "cosine", "zero-snr", "flow", r#"{"flow":{"steps":1.0}}"#] {
///     assert_eq!(text.parse::<Schedule>()?.to_string(), text);
/// }
/// assert!("sigmoid".parse::<Schedule>().is_err());
/// # fpdm_core::Result::<()>::Ok(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Schedule {
    /// `β` grows linearly.
    Linear {
        /// The first `β`.
        #[serde(default = "published::first")]
        first: f64,
        /// The last `β`.
        #[serde(default = "published::last")]
        last: f64,
        /// Times of training.
        #[serde(default = "published::steps")]
        steps: usize,
        /// Whether it was scaled to end in pure noise.
        #[serde(default)]
        zero_terminal_snr: bool,
    },
    /// `alpha²` follows a squared cosine.
    Cosine {
        /// Times of training.
        #[serde(default = "published::steps")]
        steps: usize,
        /// Whether it was scaled to end in pure noise.
        #[serde(default)]
        zero_terminal_snr: bool,
    },
    /// The straight path.
    Flow {
        /// The time of pure noise.
        #[serde(default = "published::duration")]
        steps: f64,
    },
}

mod published {
    pub(super) fn first() -> f64 {
        1e-4
    }

    pub(super) fn last() -> f64 {
        2e-2
    }

    pub(super) fn steps() -> usize {
        1000
    }

    pub(super) fn duration() -> f64 {
        1000.
    }
}

/// Times beyond any use, whose tables would fill the memory.
const MOST: usize = 1 << 20;

impl Default for Schedule {
    /// The published linear one.
    fn default() -> Self {
        Self::named("linear").expect("a name of this file")
    }
}

impl Schedule {
    const NAMES: [&'static str; 4] = ["linear", "cosine", "zero-snr", "flow"];

    fn named(name: &str) -> Option<Self> {
        let (first, last, steps) = (published::first(), published::last(), published::steps());
        match name {
            "linear" => Some(Self::Linear { first, last, steps, zero_terminal_snr: false }),
            "zero-snr" => Some(Self::Linear { first, last, steps, zero_terminal_snr: true }),
            "cosine" => Some(Self::Cosine { steps, zero_terminal_snr: false }),
            "flow" => Some(Self::Flow { steps: published::duration() }),
            _ => None,
        }
    }

    /// The tables of a variance-preserving schedule; none for the straight path.
    ///
    /// # Errors
    /// [`Error::Config`] for numbers that make no schedule.
    pub fn vp(&self) -> Result<Option<Vp>> {
        if let Self::Linear { steps, .. } | Self::Cosine { steps, .. } = self
            && *steps > MOST
        {
            return Err(Error::config("steps", format!("{steps} times are out of range; use at most {MOST}")));
        }
        if let Self::Linear { first, last, .. } = *self {
            for (field, beta) in [("first", first), ("last", last)] {
                if !(beta > 0. && beta < 1.) {
                    return Err(Error::config(
                        field,
                        format!("{beta} is outside (0, 1); 0.0001 and 0.02 are published"),
                    ));
                }
            }
        }
        let (vp, zero) = match *self {
            Self::Linear { first, last, steps, zero_terminal_snr } => {
                (Vp::linear(first, last, steps)?, zero_terminal_snr)
            }
            Self::Cosine { steps, zero_terminal_snr } => (Vp::cosine(steps)?, zero_terminal_snr),
            Self::Flow { steps } => {
                Flow { steps }.level(0.)?;
                return Ok(None);
            }
        };
        Ok(Some(if zero { vp.zero_terminal_snr()? } else { vp }))
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.iter().find(|name| Self::named(name).as_ref() == Some(self)) {
            Some(name) => f.write_str(name),
            None => f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?),
        }
    }
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.trim_start().starts_with('{') {
            return serde_json::from_str(text).map_err(|e| Error::config("schedule", format!("`{text}`: {e}")));
        }
        Self::named(text).ok_or_else(|| {
            let why = format!("`{text}` is none of {}, nor JSON as in diffusion.json", Self::NAMES.join(", "));
            Error::config("schedule", why)
        })
    }
}
