//! What training has cost, as a table.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::markdown;
use super::options::{Costs, named};

/// All seeds of one model.
struct Row {
    name: String,
    runs: Vec<Value>,
}

pub(crate) fn print(options: &Costs) -> Result<()> {
    let mut rows: Vec<Row> = Vec::new();
    for text in &options.runs {
        let (name, folder) = named(text);
        let path = Path::new(&folder).join("summary.json");
        let asked = || format!("{}: name a folder that `train --out` has written to the end", path.display());
        let text = std::fs::read_to_string(&path).with_context(asked)?;
        let run = serde_json::from_str(&text).with_context(asked)?;
        match rows.iter_mut().find(|row| row.name == name) {
            Some(row) => row.runs.push(run),
            None => rows.push(Row { name, runs: vec![run] }),
        }
    }
    let header =
        ["model", "parameters", "batch", "steps", "seconds", "ms a step", "images/s", "peak memory, GiB", "runs"];
    let cells = |row: &Row| {
        let number = |key: &str| -> Vec<f64> { row.runs.iter().filter_map(|run| run[key].as_f64()).collect() };
        let spread = |key: &str, scale: f64, decimals: usize| match number(key) {
            values if values.is_empty() => "unknown".to_owned(),
            values => markdown::spread(&values.iter().map(|value| value * scale).collect::<Vec<_>>(), decimals),
        };
        vec![
            row.name.clone(),
            spread("parameters", 1., 0).split(' ').next().unwrap_or_default().to_owned(),
            spread("batch", 1., 0).split(' ').next().unwrap_or_default().to_owned(),
            spread("steps", 1., 0),
            spread("seconds", 1., 0),
            spread("seconds_a_step", 1e3, 1),
            spread("images_per_s", 1., 0),
            spread("peak_bytes", 1. / f64::from(1 << 30), 2),
            row.runs.len().to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    markdown::put(&markdown::table(&header.map(str::to_owned), &rows), options.out.as_deref())
}
