//! The log, and the picture of it.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use fpdm_core::checkpoint::write_text;
use fpdm_train::StepReport;

const SIZE: (f64, f64) = (720., 240.);

/// The reports of a log up to `step`: what came after the checkpoint will come again. A last line that an interruption
/// has cut is left out.
pub(crate) fn read(path: &Path, step: u64) -> Result<Vec<StepReport>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let reports = text.lines().filter_map(|line| serde_json::from_str::<StepReport>(line).ok());
    Ok(reports.filter(|report| report.step <= step).collect())
}

/// Writes a log anew.
pub(crate) fn rewrite(path: &Path, reports: &[StepReport]) -> Result<()> {
    let mut text = String::new();
    for report in reports {
        writeln!(text, "{}", serde_json::to_string(report)?)?;
    }
    Ok(write_text(path, &text)?)
}

/// Loss, gradient norm and residual over steps, each averaged over a hundredth of the run, on logarithmic scales.
pub(crate) fn draw(path: &Path, reports: &[StepReport]) -> Result<()> {
    type Curve = fn(&StepReport) -> f64;
    let curves: [(&str, Curve); 3] =
        [("loss", |r| r.loss), ("gradient norm", |r| r.grad_norm), ("residual", |r| r.residual)];
    let (width, height) = SIZE;
    let total = height * curves.len() as f64;
    let mut svg =
        format!("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {total}\" font-size=\"12\">");
    write!(svg, "<rect width=\"{width}\" height=\"{total}\" fill=\"white\"/>")?;
    for (i, (name, of)) in curves.into_iter().enumerate() {
        panel(&mut svg, name, i as f64 * height, &points(reports, of))?;
    }
    svg.push_str("</svg>\n");
    Ok(write_text(path, &svg)?)
}

/// `(step, mean)` of every chunk.
fn points(reports: &[StepReport], of: fn(&StepReport) -> f64) -> Vec<(f64, f64)> {
    let chunk = reports.len().div_ceil(100).max(1);
    let mean = |part: &[StepReport]| part.iter().map(of).sum::<f64>() / part.len() as f64;
    reports.chunks(chunk).map(|part| (part[part.len() - 1].step as f64, mean(part).max(1e-12))).collect()
}

fn panel(svg: &mut String, name: &str, top: f64, points: &[(f64, f64)]) -> Result<()> {
    let (width, height) = SIZE;
    let Some(&(last, end)) = points.last() else { return Ok(()) };
    let low = points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let high = points.iter().map(|p| p.1).fold(0., f64::max);
    let span = (high / low).ln().max(1e-9);
    let place = |&(step, value): &(f64, f64)| {
        let x = 10. + step / last * (width - 20.);
        let y = top + 30. + (1. - (value / low).ln() / span) * (height - 50.);
        format!("{x:.1},{y:.1}")
    };
    let line: Vec<String> = points.iter().map(place).collect();
    write!(svg, "<polyline fill=\"none\" stroke=\"#1f77b4\" stroke-width=\"1.5\" points=\"{}\"/>", line.join(" "))?;
    let text = format!("{name}: {low:.3e} to {high:.3e}, {end:.3e} at step {last}");
    write!(svg, "<text x=\"10\" y=\"{}\">{text}</text>", top + 18.)?;
    Ok(())
}
