//! The log: JSON lines of steps and of evaluations.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use fpdm_core::checkpoint::write_text;
use serde_json::Value;

/// A log that is written to.
pub(crate) struct Log(File);

impl Log {
    /// Opens the log of a run that goes on after `step`: lines of later steps will come again, and a last line that an
    /// interruption has cut is left out.
    pub(crate) fn open(path: &Path, step: u64) -> Result<Self> {
        if path.exists() {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let known = |line: &&str| {
                serde_json::from_str::<Value>(line).is_ok_and(|v| v["step"].as_u64().is_some_and(|s| s <= step))
            };
            let kept: String = text.lines().filter(known).map(|line| format!("{line}\n")).collect();
            write_text(path, &kept)?;
        }
        Ok(Self(OpenOptions::new().create(true).append(true).open(path)?))
    }

    pub(crate) fn line(&mut self, value: &Value) -> Result<()> {
        Ok(writeln!(self.0, "{value}")?)
    }
}
