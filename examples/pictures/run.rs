//! From a command line to pictures, a grid and an account.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use fpdm_sample::{Cost, Progress};
use fpdm_vae::image::{Picture, from_tensor, grid};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::options::Options;
use super::png::{Origin, read_origin, write_png};
use crate::sampling::network::Opened;
use crate::sampling::ready::Ready;
use crate::sampling::settings::Settings;
use crate::sampling::{choice, files, stop};

/// A class and its name, if it has one.
#[derive(Clone, Copy)]
pub(crate) struct Label {
    pub(crate) class: u32,
    pub(crate) name: Option<&'static str>,
}

#[derive(Serialize)]
struct Report<'a> {
    settings: &'a Settings,
    device: String,
    parameters: usize,
    /// Seconds for everything but opening the weights.
    seconds: f64,
    pictures: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    file: String,
    image: u64,
    label: Option<u32>,
    name: Option<&'static str>,
    cost: Cost,
}

/// Runs a command: pictures, a grid, and the account as JSON.
pub(crate) fn run(mut options: Options, label_of: &dyn Fn(&Opened, u64) -> Result<Option<Label>>) -> Result<()> {
    let mut repeated = None;
    if let Some(path) = &options.from_image {
        let origin = read_origin(path)?;
        let given = options.settings.clone();
        options.settings = origin.settings.clone();
        // Weights and codec may have moved.
        if given.hub.is_some() || given.weights.is_some() {
            let Settings { hub, weights, revision, .. } = given;
            options.settings = Settings { hub, weights, revision, ..options.settings };
        }
        options.settings.codec = given.codec.or(options.settings.codec);
        (options.first, options.num) = (origin.image, 1);
        repeated = Some(origin.label.map(|class| Label { class, name: None }));
    }
    ensure!(options.num > 0, "--num 0: no picture to make; use 1 or more");
    ensure!(options.batch > 0, "--batch 0: no picture at a time; use 1 or more");
    ensure!(options.preview != Some(0), "--preview 0: use 1 for every step");
    files::prepare(&options.out)?;
    let opened = Opened::open(&options.settings, choice::device(&options.device)?)?;
    let ready = Ready::new(&opened, &options.settings)?;
    let images: Vec<u64> = (0..options.num).map(|i| options.first.wrapping_add(i)).collect();
    let labels = images
        .iter()
        .map(|&image| repeated.map_or_else(|| label_of(&opened, image), Ok))
        .collect::<Result<Vec<_>>>()?;
    stop::listen()?;

    let batch = if options.settings.allocation.starts_with("adaptive") { 1 } else { options.batch };
    let begun = Instant::now();
    let batches = images.len().div_ceil(batch);
    let bar = ProgressBar::new((batches * ready.plan.steps().len()) as u64);
    bar.set_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} steps, {eta} left {msg}")?);
    let (mut pictures, mut entries) = (Vec::new(), Vec::new());
    for (part, labels) in images.chunks(batch).zip(labels.chunks(batch)) {
        let mut on_step = |progress: &Progress| -> Result<()> {
            bar.inc(1);
            if options.preview.is_some_and(|every| (progress.step.index + 1).is_multiple_of(every)) {
                let now = decode(&opened, &progress.x0)?;
                write_png(&options.out.join("preview.png"), &together(&now)?, None)?;
            }
            Ok(())
        };
        let (latents, cost) =
            ready.sample(part, &labels.iter().map(|l| l.map(|l| l.class)).collect::<Vec<_>>(), &mut on_step)?;
        for ((picture, &image), &label) in decode(&opened, &latents)?.into_iter().zip(part).zip(labels) {
            let file = format!("{image:06}.png");
            let (label, name) = (label.map(|l| l.class), label.and_then(|l| l.name));
            let origin = Origin { settings: options.settings.clone(), image, label };
            write_png(&options.out.join(&file), &picture, Some(&origin))?;
            entries.push(Entry { file, image, label, name, cost: cost.clone() });
            pictures.push(picture);
        }
    }
    bar.finish_and_clear();
    write_png(&options.out.join("grid.png"), &together(&pictures)?, None)?;
    let report = Report {
        settings: &options.settings,
        device: format!("{:?}", opened.device.location()),
        parameters: opened.config.parameter_count(),
        seconds: begun.elapsed().as_secs_f64(),
        pictures: entries,
    };
    let text = serde_json::to_string_pretty(&report)?;
    files::replace(&options.out.join("samples.json"), |file| Ok(writeln!(file, "{text}")?))?;
    let cost = &report.pictures.first().context("one picture at least")?.cost;
    println!(
        "{} pictures in {}: each {} solves, {} applications, {} block passes, {:.3}e9 multiply-adds, mean residual \
         {:.2e}; {:.1} s in all",
        report.pictures.len(),
        options.out.display(),
        cost.solves,
        cost.applications,
        cost.block_passes,
        cost.multiply_adds as f64 / 1e9,
        cost.mean_residual(),
        report.seconds
    );
    Ok(())
}

fn decode(opened: &Opened, latents: &Tensor) -> Result<Vec<Picture>> {
    // One by one: a decoder needs far more memory than the sampler, and its picture must not depend on its neighbours.
    let one = |i| -> Result<Picture> {
        let pixels = opened.codec.decode(&latents.narrow(0, i, 1)?)?;
        from_tensor(&pixels)?.pop().context("a codec decodes to one picture a latent")
    };
    (0..latents.dim(0)?).map(one).collect()
}

fn together(pictures: &[Picture]) -> Result<Picture> {
    let columns = (pictures.len() as f64).sqrt().ceil() as usize;
    Ok(grid(pictures, columns.max(1), 2)?)
}
