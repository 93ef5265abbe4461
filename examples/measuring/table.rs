//! Lines as a table.

use anyhow::{Result, ensure};
use serde_json::Value;

use super::line::Line;
use super::markdown;
use super::options::{By, Table};

/// What may tell two rows apart; a column is shown where it does.
const KEYS: [&str; 16] = [
    "sampler",
    "spacing",
    "steps",
    "budget",
    "allocation",
    "solver",
    "reuse",
    "guidance",
    "guided_channels",
    "guidance_interval",
    "unconditional_share",
    "iteration_guidance",
    "iteration_guidance_early",
    "dtype",
    "num",
    "codec_dtype",
];

/// All seeds of one setting of one model.
struct Row {
    model: String,
    /// As [`KEYS`].
    told: Vec<Value>,
    lines: Vec<Line>,
}

impl Row {
    fn mean(&self, of: fn(&Line) -> f64) -> f64 {
        self.lines.iter().map(of).sum::<f64>() / self.lines.len() as f64
    }

    fn spread(&self, of: fn(&Line) -> f64, decimals: usize) -> String {
        markdown::spread(&self.lines.iter().map(of).collect::<Vec<_>>(), decimals)
    }
}

pub(crate) fn print(options: &Table) -> Result<()> {
    let mut rows: Vec<Row> = Vec::new();
    for file in &options.files {
        ensure!(file.exists(), "{}: there is no such file", file.display());
        let asked = |line: &Line| options.settings.as_ref().is_none_or(|table| line.tables.contains(table));
        for line in Line::read(file)?.into_iter().filter(asked) {
            let settings = serde_json::to_value(&line.settings)?;
            let of = |key: &&str| match *key {
                "num" => line.num.into(),
                "codec_dtype" => line.codec_dtype.as_str().into(),
                key => settings[key].clone(),
            };
            let told: Vec<Value> = KEYS.iter().map(of).collect();
            match rows.iter_mut().find(|row| row.model == line.model && row.told == told) {
                // Written once more for another table.
                Some(row) if row.lines.iter().any(|other| other.settings == line.settings) => {}
                Some(row) => row.lines.push(line),
                None => rows.push(Row { model: line.model.clone(), told, lines: vec![line] }),
            }
        }
    }
    ensure!(!rows.is_empty(), "there are no such lines yet");
    let by: Option<fn(&Line) -> f64> = match options.by {
        By::Line => None,
        By::BlockPasses => Some(|line| line.block_passes),
        By::MultiplyAdds => Some(|line| line.multiply_adds),
        By::Seconds => Some(|line| line.seconds),
        By::Fd => Some(|line| line.fd),
    };
    if let Some(by) = by {
        rows.sort_by(|a, b| a.mean(by).total_cmp(&b.mean(by)));
    }
    let shown: Vec<usize> =
        (0..KEYS.len()).filter(|&key| rows.iter().any(|row| row.told[key] != rows[0].told[key])).collect();
    let mut header = vec!["model".to_owned()];
    header.extend(shown.iter().map(|&key| KEYS[key].replace('_', " ")));
    let last = ["block passes", "10⁹ multiply-adds", "ms a sample", "FD", "KID", "lines"];
    header.extend(last.map(str::to_owned));
    let cells = |row: &Row| {
        let mut cells = vec![row.model.clone()];
        cells.extend(shown.iter().map(|&key| match &row.told[key] {
            Value::String(text) => text.clone(),
            Value::Null => "all".to_owned(),
            other => other.to_string(),
        }));
        cells.push(format!("{:.0}", row.mean(|line| line.block_passes)));
        cells.push(format!("{:.2}", row.mean(|line| line.multiply_adds / 1e9)));
        cells.push(row.spread(|line| line.seconds * 1e3, 3));
        cells.push(row.spread(|line| line.fd, 2));
        cells.push(row.spread(|line| line.kid, 4));
        cells.push(row.lines.len().to_string());
        cells
    };
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    markdown::put(&markdown::table(&header, &rows), options.out.as_deref())
}
