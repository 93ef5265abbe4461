//! What a network was trained for, as data: `diffusion.json`.

mod latents;
mod schedule;

use serde::{Deserialize, Serialize};

pub use self::latents::{CodecId, Normalisation};
pub use self::schedule::Schedule;
use crate::dit::Config;
use crate::{Error, Parameterization, Result};

/// What neither weights nor [`Config`] say: what the network predicts, along which schedule, of which latents.
/// `diffusion.json`, beside `config.json`. Unknown fields are refused.
///
/// All fields but `recommended` are facts of the training, which cannot be chosen anew when sampling.
///
/// ```
/// use fpdm_core::{Diffusion, Parameterization, Schedule};
///
/// let text = r#"{ "prediction": "v", "schedule": { "linear": { "zero_terminal_snr": true } },
///                 "latents": { "std": [0.85] }, "recommended": { "sampler": "ddim", "steps": 60 } }"#;
/// let diffusion = Diffusion::from_json(text)?;
/// assert_eq!(diffusion.schedule.to_string(), "zero-snr");
/// assert_eq!(diffusion, Diffusion::from_json(&diffusion.to_json())?);
///
/// let error = Diffusion::from_json(&text.replace("60", "\"many\"")).unwrap_err().to_string();
/// assert!(error.contains("recommended.steps"), "{error}");
/// # fpdm_core::Result::<()>::Ok(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Diffusion {
    /// What the network predicts.
    pub prediction: Parameterization,
    /// The schedule. Its times, `0 … steps − 1` or for flow `0 … steps`, are what the network is told.
    pub schedule: Schedule,
    /// Whether the second half of the output was trained to say a variance. [`Config::learn_sigma`] says that there is
    /// such a half.
    #[serde(default)]
    pub learned_variance: bool,
    /// What was done to the codec's latents before training.
    #[serde(default)]
    pub latents: Normalisation,
    /// What encoded the latents; none is known for latents from elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codec: Option<CodecId>,
    /// The name of the training data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// How to sample from it.
    #[serde(default)]
    pub recommended: Recommended,
}

/// A trainer's advice, in the words of the sampling commands, which read and check them. What is missing is left to the
/// commands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recommended {
    /// `ddim`, say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampler: Option<String>,
    /// `trailing`, say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spacing: Option<String>,
    /// Noise levels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// `240` block passes or `2each`, say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<String>,
    /// `uniform`, say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocation: Option<String>,
    /// `picard`, say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub solver: Option<String>,
    /// `reuse`, say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reuse: Option<String>,
    /// The scale of classifier-free guidance; 1 is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
}

impl Diffusion {
    /// The name of the file.
    pub const FILE: &'static str = "diffusion.json";

    /// A network about which only this is known: unchanged latents, and nothing recommended.
    pub fn new(prediction: Parameterization, schedule: Schedule) -> Self {
        Self {
            prediction,
            schedule,
            learned_variance: false,
            latents: Normalisation::default(),
            codec: None,
            data: None,
            recommended: Recommended::default(),
        }
    }

    /// Reads and checks the text of a `diffusion.json`.
    ///
    /// # Errors
    /// [`Error::Config`] with the path of the field: a syntax error, an unknown or missing field, or a value out of
    /// range.
    pub fn from_json(text: &str) -> Result<Self> {
        // A struct may also be read from a list: not from a user's file.
        serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text)
            .map_err(|e| Error::config(Self::FILE, e.to_string()))?;
        let mut json = serde_json::Deserializer::from_str(text);
        let diffusion: Self = serde_path_to_error::deserialize(&mut json).map_err(|e| match e.path().to_string() {
            top if top == "." => Error::config(Self::FILE, e.inner().to_string()),
            path => Error::config(format!("{}: {path}", Self::FILE), e.inner().to_string()),
        })?;
        diffusion.check()?;
        Ok(diffusion)
    }

    /// The text of a `diffusion.json`.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("no value that JSON cannot hold")
    }

    /// Refuses values out of range.
    ///
    /// # Errors
    /// [`Error::Config`] with the field, its value and the fix.
    pub fn check(&self) -> Result<()> {
        let refuse = |field: &str, why: String| Err(Error::config(format!("{}: {field}", Self::FILE), why));
        self.schedule.vp().map_err(|e| Error::config(format!("{}: schedule", Self::FILE), e.to_string()))?;
        self.latents.check().map_err(of_file)?;
        match (&self.codec, self.recommended.steps, self.recommended.guidance) {
            (Some(codec), ..) if codec.factor == Some(0) => refuse("codec.factor", "0 pixels a latent; 8, say".into()),
            (_, Some(0), _) => refuse("recommended.steps", "0 steps make no image; use 1 or more".into()),
            (_, _, Some(g)) if !g.is_finite() => refuse("recommended.guidance", format!("{g} is no scale")),
            _ => Ok(()),
        }
    }

    /// Refuses what cannot be said of a network of `config`.
    ///
    /// # Errors
    /// [`Error::Config`] with the field, its value and the fix.
    pub fn check_network(&self, config: &Config) -> Result<()> {
        if self.learned_variance && !config.learn_sigma {
            let why = "true, but config.json has learn_sigma false: the network has no output for it; set it to false";
            return Err(Error::config(format!("{}: learned_variance", Self::FILE), why));
        }
        self.latents.check_channels(config.in_channels).map_err(of_file)
    }
}

fn of_file(error: Error) -> Error {
    match error {
        Error::Config { field, why } => Error::config(format!("{}: {field}", Diffusion::FILE), why),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Diffusion::from_json(text).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_the_field() {
        let v = |rest: &str| format!(r#"{{ "prediction": "v", "schedule": {{ "flow": {{}} }}{rest} }}"#);
        assert!(Diffusion::from_json(&v("")).is_ok());
        for (text, words) in [
            (v(r#", "latent": {}"#), &["`latent`"][..]),
            (v(r#", "latents": { "std": 0.8 }"#), &["latents.std"]),
            (v(r#", "latents": { "std": [0.8, 0] }"#), &["latents.std", "0"]),
            (v(r#", "latents": { "mean": [] }"#), &["latents.mean"]),
            (v(r#", "recommended": { "step": 3 }"#), &["recommended", "`step`"]),
            (v(r#", "recommended": { "steps": 0 }"#), &["recommended.steps"]),
            (v(r#", "codec": { "id": "pixels", "factor": 0 }"#), &["codec.factor"]),
            (v(r#", "codec": { "factor": 8 }"#), &["codec", "`id`"]),
            (v("").replace("\"v\"", "\"noise\""), &["prediction", "`noise`"]),
            (v("").replace("flow", "sigmoid"), &["schedule", "`sigmoid`"]),
            (v("").replace("\"flow\": {}", r#""linear": { "last": 2 }"#), &["schedule", "`last`", "2"]),
            (v("").replace("\"flow\": {}", r#""linear": { "steps": "x" }"#), &["schedule.linear.steps"]),
            (v("").replace("\"flow\": {}", r#""flow": { "steps": -1 }"#), &["schedule", "-1"]),
            (r#"{ "prediction": "v" }"#.to_owned(), &["`schedule`"]),
            ("[]".to_owned(), &["diffusion.json"]),
            ("{".to_owned(), &["diffusion.json"]),
        ] {
            let error = error(&text);
            assert!(words.iter().all(|word| error.contains(word)), "{text}: {error}");
        }
    }

    #[test]
    fn a_network_without_variance_cannot_have_learned_it() {
        let config = Config { learn_sigma: false, ..Config::default() };
        let mut diffusion = Diffusion::new(Parameterization::V, Schedule::default());
        assert!(diffusion.check_network(&config).is_ok());
        diffusion.learned_variance = true;
        assert!(diffusion.check_network(&config).unwrap_err().to_string().contains("learned_variance"));
        diffusion.learned_variance = false;
        diffusion.latents.std = vec![1.; 3];
        assert!(diffusion.check_network(&config).unwrap_err().to_string().contains("3"));
    }
}
