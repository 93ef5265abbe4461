//! What a run has cost, for programs to read.

use std::path::Path;

use anyhow::Result;
use candle_core::Device;
use fpdm_core::ImplicitModel;
use fpdm_core::checkpoint::write_text;
use fpdm_core::dit::Config;
use fpdm_train::{StepReport, Trainer, peak_bytes};
use serde_json::{Value, json};

use super::options::Options;

/// The numbers of a whole run.
pub(crate) fn of(
    options: &Options,
    config: &Config,
    trainer: &Trainer<Box<dyn ImplicitModel>>,
    reports: &[StepReport],
    device: &Device,
) -> Value {
    let (steps, seconds) = (trainer.steps_done(), trainer.seconds());
    let batch = options.batch_size * options.accumulate;
    // Between reports, so that the first, in which kernels are compiled, does not count for more than it is.
    let mut speeds: Vec<f64> = reports.iter().map(|report| report.images_per_s).collect();
    speeds.sort_by(f64::total_cmp);
    json!({
        "architecture": config.architecture,
        "gradient": options.gradient.words(config.architecture),
        "dtype": options.network.dtype,
        "device": format!("{:?}", device.location()),
        "seed": options.seed,
        "parameters": config.parameter_count(),
        "batch": batch,
        "steps": steps,
        "seconds": seconds,
        "seconds_a_step": seconds / steps.max(1) as f64,
        "images_per_s": batch as f64 * steps as f64 / seconds.max(f64::MIN_POSITIVE),
        "images_per_s_median": speeds.get(speeds.len() / 2),
        // A run that went on has the most of all its parts.
        "peak_bytes": reports.iter().filter_map(|report| report.peak_bytes).chain(peak_bytes(device)).max(),
        "loss": reports.last().map(|report| report.loss),
    })
}

/// Writes `summary.json` to `folder`.
pub(crate) fn write(folder: &Path, summary: &Value) -> Result<()> {
    Ok(write_text(folder.join("summary.json"), &(serde_json::to_string_pretty(summary)? + "\n"))?)
}
