//! Which settings are measured: lines of JSON with the flags of the sampling commands.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use fpdm_sample::Cost;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::measure::Probe;
use super::models::Model;
use crate::sampling::flags::Flags;
use crate::sampling::ready::Ready;
use crate::sampling::settings::Settings;

/// Settings that come with the command.
const TABLES: [(&str, &str); 8] = [
    ("budgets", include_str!("tables/budgets.jsonl")),
    ("equal", include_str!("tables/equal.jsonl")),
    ("iterations", include_str!("tables/iterations.jsonl")),
    ("reuse", include_str!("tables/reuse.jsonl")),
    ("allocation", include_str!("tables/allocation.jsonl")),
    ("plain", include_str!("tables/plain.jsonl")),
    ("guidance", include_str!("tables/guidance.jsonl")),
    ("depth", include_str!("tables/depth.jsonl")),
];

/// What a setting may not say: the command says it.
const TAKEN: [&str; 6] = ["hub", "revision", "weights", "codec", "dtype", "seed"];

/// One line: flags without their dashes, and for whom they are.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Wish {
    /// Words that must all fit a model: fpdm or dit, flow or vp, a name. None fit all.
    #[serde(default)]
    only: String,
    /// Where `steps` comes from, if from another model's cost.
    equal: Option<Equal>,
    #[serde(flatten)]
    flags: Map<String, Value>,
    /// The table that it is a line of.
    #[serde(skip)]
    pub(crate) table: String,
}

/// As many steps as cost what another model's `steps` cost.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Equal {
    #[serde(rename = "in")]
    unit: Unit,
    /// The first model that this word fits.
    model: String,
    steps: usize,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Unit {
    BlockPasses,
    MultiplyAdds,
    Seconds,
}

impl Unit {
    fn of(self, cost: &Cost) -> f64 {
        match self {
            Unit::BlockPasses => cost.block_passes as f64,
            Unit::MultiplyAdds => cost.multiply_adds as f64,
            Unit::Seconds => cost.seconds,
        }
    }
}

#[derive(Parser)]
#[command(no_binary_name = true)]
struct Words {
    #[command(flatten)]
    flags: Flags,
}

/// One setting of one model.
pub(crate) struct Cell<'a> {
    pub(crate) model: &'a Model,
    pub(crate) settings: Settings,
    /// The tables that it is for.
    pub(crate) tables: Vec<String>,
}

/// The settings that a model recommends.
pub(crate) fn plain(model: &Model, dtype: &str) -> Result<Settings> {
    let flags = Words::try_parse_from([""; 0])?.flags;
    Flags { place: model.place.clone(), dtype: dtype.to_owned(), ..flags }.settle(&model.opened)
}

/// Reads a table, by its name or from a file.
pub(crate) fn read(table: &str) -> Result<Vec<Wish>> {
    let text = match TABLES.iter().find(|(name, _)| *name == table) {
        Some((_, text)) => (*text).to_owned(),
        None if Path::new(table).exists() => std::fs::read_to_string(table).with_context(|| table.to_owned())?,
        None => {
            let names: Vec<&str> = TABLES.iter().map(|(name, _)| *name).collect();
            bail!("--settings: `{table}` is neither a file nor one of {}", names.join(", "))
        }
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let wish = |(i, line)| {
        let place = || format!("--settings {table}, line {}", i + 1);
        let wish: Wish = serde_json::from_str(line).with_context(place)?;
        wish.words().with_context(place)?;
        Ok(Wish { table: table.to_owned(), ..wish })
    };
    let wishes: Vec<Wish> = lines.map(wish).collect::<Result<_>>()?;
    ensure!(!wishes.is_empty(), "--settings {table}: it has no line");
    Ok(wishes)
}

impl Wish {
    /// The words that must all fit a model.
    pub(crate) fn only(&self) -> &str {
        &self.only
    }

    pub(crate) fn fits(&self, model: &Model) -> bool {
        self.only.split_whitespace().all(|word| model.is(word))
    }

    fn words(&self) -> Result<Flags> {
        let mut words = Vec::new();
        for (key, value) in &self.flags {
            let flag = key.replace('_', "-");
            ensure!(!TAKEN.contains(&&*flag), "`{key}` is for the command line, not for a setting");
            let text = |value: &Value| match value {
                Value::String(text) => Ok(text.clone()),
                Value::Number(number) => Ok(number.to_string()),
                other => bail!("`{key}`: {other} is neither a text nor a number"),
            };
            match value {
                Value::Array(values) => {
                    words.push(format!("--{flag}"));
                    words.extend(values.iter().map(text).collect::<Result<Vec<_>>>()?);
                }
                value => words.push(format!("--{flag}={}", text(value)?)),
            }
        }
        let flags = Words::try_parse_from(words).map_err(|error| anyhow::anyhow!("{}", error.render()))?.flags;
        if self.equal.is_some() {
            ensure!(flags.steps.is_none(), "`steps` and `equal` are one too many");
            let each = flags.budget.as_ref().is_none_or(|budget| budget.ends_with("each"));
            ensure!(each, "`equal` needs a budget of so many applications each");
        }
        Ok(flags)
    }

    /// The settings for a model, checked. Where the steps are those of an equal cost, `probe` finds out what a step
    /// costs; before that they are 1.
    pub(crate) fn settle(
        &self,
        models: &[Model],
        model: &Model,
        dtype: &str,
        probe: Option<&mut Probe>,
    ) -> Result<Settings> {
        let flags = Flags { place: model.place.clone(), dtype: dtype.to_owned(), ..self.words()? };
        let mut settings = flags.settle(&model.opened)?;
        if let Some(Equal { unit, model: other, steps }) = &self.equal {
            let Some(other) = models.iter().find(|model| model.is(other)) else {
                bail!("`equal`: no model is `{other}`; give one, or leave the setting out");
            };
            settings.steps = 1;
            if let Some(probe) = probe {
                let target = unit.of(&probe.step(other, &plain(other, dtype)?)?) * *steps as f64;
                settings.steps = (target / unit.of(&probe.step(model, &settings)?)).round().max(1.) as usize;
            }
        }
        Ready::new(&model.opened, &settings)?;
        Ok(settings)
    }
}
