//! Tables in Markdown.

use std::path::Path;

use anyhow::Result;

use crate::sampling::files;

/// The mean, and the standard deviation where there are several.
pub(crate) fn spread(values: &[f64], decimals: usize) -> String {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.);
    if values.len() < 2 {
        return format!("{mean:.decimals$}");
    }
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    format!("{mean:.decimals$} ± {:.decimals$}", (squares / (n - 1.)).sqrt())
}

/// A header and rows of as many cells.
pub(crate) fn table(header: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(header);
    text += &format!("|{}\n", "---|".repeat(header.len()));
    rows.iter().for_each(|row| text += &line(row));
    text
}

/// Writes to a file, or prints.
pub(crate) fn put(text: &str, out: Option<&Path>) -> Result<()> {
    match out {
        Some(path) => files::replace(path, |file| Ok(file.write_all(text.as_bytes())?)),
        None => {
            print!("{text}");
            Ok(())
        }
    }
}
