//! What was found for one setting: a line of JSON.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::sampling::settings::Settings;

/// One setting of one model with one seed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) model: String,
    /// The tables that it was measured for, as `--settings` had them.
    pub(crate) tables: Vec<String>,
    pub(crate) settings: Settings,
    /// Samples.
    pub(crate) num: u64,
    /// What the codec's weights were.
    pub(crate) codec_dtype: String,
    pub(crate) parameters: usize,
    /// For one sample, as all that follow up to `seconds`.
    pub(crate) applications: f64,
    pub(crate) block_passes: f64,
    pub(crate) multiply_adds: f64,
    /// Of sampling.
    pub(crate) seconds: f64,
    /// Of decoding, and of features where they are computed beside it.
    pub(crate) seconds_after: f64,
    /// The mean of the solves' last residuals.
    pub(crate) residual: f64,
    /// What distances must be named by.
    pub(crate) features: String,
    /// The Fréchet distance to the training pictures.
    pub(crate) fd: f64,
    /// The kernel distance to the held-out pictures, from all features.
    pub(crate) kid: f64,
    /// Its mean over subsets.
    pub(crate) kid_mean: f64,
    /// Its standard deviation over subsets.
    pub(crate) kid_std: f64,
    /// Samples in a subset.
    pub(crate) kid_size: usize,
    pub(crate) device: String,
}

impl Line {
    /// Whether this is that setting of that model, so many samples through such a codec.
    pub(crate) fn is(&self, model: &str, settings: &Settings, num: u64, codec_dtype: &str) -> bool {
        self.model == model && &self.settings == settings && self.num == num && self.codec_dtype == codec_dtype
    }

    /// All lines of a file; none if there is no file. A last line that an interruption has cut is left out.
    pub(crate) fn read(path: &Path) -> Result<Vec<Self>> {
        if !path.exists() {
            return Ok(Vec::new());
        }
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let (whole, cut) = text.rsplit_once('\n').unwrap_or(("", &text));
        if !cut.is_empty() {
            eprintln!("{}: its last line is cut and left out", path.display());
        }
        let line = |(i, line): (usize, &str)| {
            serde_json::from_str(line).with_context(|| format!("{}, line {}", path.display(), i + 1))
        };
        whole.lines().enumerate().map(line).collect()
    }

    /// Writes it behind the others.
    pub(crate) fn append(&self, path: &Path) -> Result<()> {
        let mut file =
            OpenOptions::new().create(true).append(true).open(path).with_context(|| path.display().to_string())?;
        // In one piece, so that an interruption leaves whole lines.
        Ok(file.write_all((serde_json::to_string(self)? + "\n").as_bytes())?)
    }
}
