//! Samples of every setting of every model.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use fpdm_core::checkpoint::write_safetensors;
use fpdm_eval::{Features, FrechetTo, Gaussian};
use fpdm_sample::Cost;

use super::cells::{self, Cell, Wish};
use super::line::Line;
use super::models::Model;
use super::options::Measure;
use super::score::{self, Job, Samples, Scorer};
use crate::device;
use crate::evaluation::features::Extractor;
use crate::evaluation::set::{Reading, Set};
use crate::sampling::ready::Ready;
use crate::sampling::settings::Settings;
use crate::sampling::{files, stop};

/// Steps after which a step's cost is known.
const STEPS: usize = 4;

pub(crate) fn run(options: &Measure) -> Result<()> {
    options.check()?;
    fpdm_kernels::keep_freed_memory();
    if let Some(folder) = &options.keep_latents {
        files::prepare(folder).context("--keep-latents")?;
    }
    // Whatever can be refused is refused before any work.
    let mut wishes = Vec::new();
    for table in &options.settings {
        wishes.extend(cells::read(table)?);
    }
    let device = device::open(&options.device)?;
    let models = Model::open_all(options, &device)?;
    settle(options, &wishes, &models, None)?;
    let there = Line::read(&options.out)?;
    let beside = match &*options.features_device {
        "auto" => device.clone(),
        other => device::open(other).context("--features-device")?,
    };
    let weights = &options.weights;
    let extractor =
        Extractor::open(Features::EfficientNetLite0, weights, options.cache.clone(), options.decode_batch, &beside)?;
    let how = Reading { codec: options.codec.as_deref(), side: options.side, through: None };
    let (reference, held_out) =
        (Set::open(&options.reference, how, &device)?, Set::open(&options.held_out, how, &device)?);
    let reference = FrechetTo::new(Gaussian::of(&extractor.features(&reference)?)?);
    let held_out = extractor.features(&held_out)?;
    stop::listen()?;

    let mut probe = Probe { batch: options.batch.min(options.num as usize), known: Vec::new() };
    for model in &models {
        probe.warm(model, &options.dtype)?;
    }
    let cells = settle(options, &wishes, &models, Some(&mut probe))?;
    let jobs: Vec<(&Cell, u64)> =
        cells.iter().flat_map(|cell| options.seed.iter().map(move |&seed| (cell, seed))).collect();
    // An accelerator goes on sampling while the processor's cores look at what there is.
    let inline = device.is_cpu() || !beside.is_cpu();
    let scorer = Scorer { reference, held_out, subsets: options.kid(), extractor: &extractor, out: &options.out };
    let mut measured = 0;
    score::beside(&scorer, |add| {
        for (i, (cell, seed)) in jobs.iter().enumerate() {
            let settings = Settings { seed: *seed, ..cell.settings.clone() };
            let mut tables = cell.tables.clone();
            let same = |line: &&Line| line.is(&cell.model.name, &settings, options.num, &options.codec_dtype);
            let known: Vec<&Line> = there.iter().filter(same).collect();
            tables.retain(|table| !known.iter().any(|line| line.tables.contains(table)));
            if let Some(&line) = known.first() {
                // Measured for another table.
                if !tables.is_empty() {
                    Line { tables, ..line.clone() }.append(&options.out)?;
                }
                continue;
            }
            let place = format!("{}/{}", i + 1, jobs.len());
            match sample(options, cell.model, settings, inline.then_some(&extractor)) {
                Ok((line, samples)) => {
                    measured += 1;
                    add(Job { line: Line { tables, ..line }, samples, place })?;
                }
                // A model that is no good under one setting has others.
                Err(error) if score::is_no_number(&error) => {
                    eprintln!("{place} {}: no line: {error:#}", cell.model.name)
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    })?;
    println!("{measured} of {} settings are new in {}", jobs.len(), options.out.display());
    Ok(())
}

/// All settings of all models, checked.
fn settle<'a>(
    options: &Measure,
    wishes: &[Wish],
    models: &'a [Model],
    mut probe: Option<&mut Probe>,
) -> Result<Vec<Cell<'a>>> {
    let mut cells: Vec<Cell> = Vec::new();
    for model in models {
        for wish in wishes.iter().filter(|wish| wish.fits(model)) {
            let settings = wish.settle(models, model, &options.dtype, probe.as_deref_mut())?;
            let table = wish.table.clone();
            // What several tables ask for is measured once.
            match cells.iter_mut().find(|cell| std::ptr::eq(cell.model, model) && cell.settings == settings) {
                Some(cell) if cell.tables.contains(&table) => {}
                Some(cell) => cell.tables.push(table),
                None => cells.push(Cell { model, settings, tables: vec![table] }),
            }
        }
    }
    if cells.is_empty() {
        let words: BTreeSet<&str> = wishes.iter().map(Wish::only).collect();
        bail!(
            "--settings {}: no line is for these models, but for {}; NAME=FOLDER gives a model a name",
            options.settings.join(","),
            words.into_iter().map(|only| format!("`{only}`")).collect::<Vec<_>>().join(", ")
        );
    }
    Ok(cells)
}

/// What a step costs, tried out.
pub(crate) struct Probe {
    batch: usize,
    /// The name of a model, settings of one step, and its cost. One for all seeds of a model, whose steps are then equal.
    known: Vec<(String, Settings, Cost)>,
}

impl Probe {
    /// The first call of a kernel compiles, loads and chooses: nobody's time should have that in it.
    fn warm(&self, model: &Model, dtype: &str) -> Result<()> {
        let settings = cells::plain(model, dtype)?;
        draw(model, &Settings { steps: 2, ..settings }, 0, self.batch)?;
        Ok(())
    }

    /// What one step of so many applications costs a batch, and a sample of it in the other units.
    pub(crate) fn step(&mut self, model: &Model, settings: &Settings) -> Result<Cost> {
        let one = Settings { steps: 1, ..settings.clone() };
        let alike = |known: &Settings| Settings { place: one.place.clone(), ..known.clone() } == one;
        if let Some((.., cost)) = self.known.iter().find(|(name, known, _)| *name == model.name && alike(known)) {
            return Ok(cost.clone());
        }
        let (_, costs) = draw(model, &Settings { steps: STEPS, ..one.clone() }, 0, self.batch)?;
        let cost = costs.into_iter().next().context("a sample has a cost")?;
        let cost = Cost {
            block_passes: cost.block_passes / STEPS,
            multiply_adds: cost.multiply_adds / STEPS as u64,
            seconds: cost.seconds / STEPS as f64,
            ..cost
        };
        self.known.push((model.name.clone(), one, cost.clone()));
        Ok(cost)
    }
}

/// A batch from sample `first` on.
fn draw(model: &Model, settings: &Settings, first: u64, batch: usize) -> Result<(Tensor, Vec<Cost>)> {
    let images: Vec<u64> = (first..).take(batch).collect();
    Ready::new(&model.opened, settings)?.sample(&images, &model.labels(&images), &mut |_| Ok(()))
}

/// All samples of a cell: features, where there is somebody to compute them, or pixels.
fn sample(
    options: &Measure,
    model: &Model,
    settings: Settings,
    extractor: Option<&Extractor>,
) -> Result<(Line, Samples)> {
    let opened = &model.opened;
    let (mut parts, mut latents, mut costs, mut seconds) = (Vec::new(), Vec::new(), Vec::new(), 0.);
    let mut after = 0.;
    for first in (0..options.num).step_by(options.batch) {
        let batch = options.batch.min((options.num - first) as usize);
        let (z, cost) = draw(model, &settings, first, batch)?;
        seconds += cost.first().map_or(0., |cost| cost.seconds);
        costs.extend(cost);
        let begun = Instant::now();
        let z = settings.latents().undo(&z)?;
        for start in (0..batch).step_by(options.decode_batch) {
            let pixels = model.decode(&z.narrow(0, start, options.decode_batch.min(batch - start))?)?;
            parts.push(match extractor {
                Some(extractor) => extractor.network.features(&pixels)?.to_device(&Device::Cpu)?,
                None => pixels.to_device(&Device::Cpu)?,
            });
        }
        after += begun.elapsed().as_secs_f64();
        if options.keep_latents.is_some() {
            latents.push(z.to_device(&Device::Cpu)?.to_dtype(DType::F32)?);
        }
    }
    let num = options.num as f64;
    let mean = |of: &dyn Fn(&Cost) -> f64| costs.iter().map(of).sum::<f64>() / num;
    let line = Line {
        model: model.name.clone(),
        tables: Vec::new(),
        num: options.num,
        codec_dtype: options.codec_dtype.clone(),
        parameters: opened.config.parameter_count(),
        applications: mean(&|cost| cost.applications as f64),
        block_passes: mean(&|cost| cost.block_passes as f64),
        multiply_adds: mean(&|cost| cost.multiply_adds as f64),
        seconds: seconds / num,
        seconds_after: after / num,
        residual: mean(&Cost::mean_residual),
        features: "EfficientNet-Lite0".to_owned(),
        fd: 0.,
        kid: 0.,
        kid_mean: 0.,
        kid_std: 0.,
        kid_size: 0,
        device: format!("{:?}", opened.device.location()),
        settings,
    };
    if let Some(folder) = &options.keep_latents {
        keep(folder, &line, &latents)?;
    }
    Ok((line, if extractor.is_some() { Samples::Features(parts) } else { Samples::Pixels(parts) }))
}

/// Latents as the codec knows them, under a name that says the most of the setting; `evaluate --codec` reads them.
fn keep(folder: &Path, line: &Line, latents: &[Tensor]) -> Result<()> {
    let s = &line.settings;
    let said = format!("{} {} {} {} {} {}", s.sampler, s.steps, s.budget, s.allocation, s.solver, s.reuse);
    let name = format!("{} {said} guidance {} seed {}", line.model, s.guidance, s.seed);
    let name: String = name.chars().map(|c| if c.is_alphanumeric() || c == '.' { c } else { '-' }).collect();
    // Seeds of training have one name, and folders of their own.
    let weights = s.place.weights.as_deref().unwrap_or_default();
    let of: String = weights.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
    let path = folder.join(format!("{of}-{name}.safetensors"));
    Ok(write_safetensors(&path, &[("latents".to_owned(), Tensor::cat(latents, 0)?)])?)
}
