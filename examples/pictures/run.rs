//! From a command line to pictures, a grid and an account.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use fpdm_core::Normalisation;
use fpdm_sample::{Cost, Progress};
use fpdm_vae::image::{Picture, from_tensor, grid};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::options::Options;
use super::png::{Origin, read_origin, write_png};
use crate::device;
use crate::sampling::flags::Place;
use crate::sampling::network::{Label, Opened};
use crate::sampling::ready::Ready;
use crate::sampling::settings::Settings;
use crate::sampling::{files, stop};

/// A label, and its name if it has one.
#[derive(Clone, Default)]
pub(crate) struct Named {
    pub(crate) label: Option<Label>,
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
    label: Option<Label>,
    name: Option<&'static str>,
    cost: Cost,
}

/// Runs a command: pictures, `usual` many if no number is given, a grid, and the account as JSON.
pub(crate) fn run(
    options: &Options,
    usual: u64,
    label_of: &dyn Fn(&Opened, u64, &Settings) -> Result<Named>,
) -> Result<()> {
    let origin = options.from_image.as_deref().map(read_origin).transpose()?;
    let (first, num) = match &origin {
        Some(origin) => (origin.image, 1),
        None => (options.first, options.num.unwrap_or(usual)),
    };
    ensure!(num > 0, "--num 0: no picture to make; use 1 or more");
    ensure!(options.batch > 0, "--batch 0: no picture at a time; use 1 or more");
    ensure!(options.preview != Some(0), "--preview 0: use 1 for every step");
    files::prepare(&options.out)?;
    let device = device::open(&options.device)?;
    let (opened, settings) = match &origin {
        Some(origin) => {
            let mut settings = origin.settings.clone();
            settings.place = moved(&settings.place, &options.flags.place);
            let opened = Opened::open(&settings.place, &settings.dtype, device, &options.graphs)?;
            settings.agree(&opened)?;
            (opened, settings)
        }
        None => {
            let opened = Opened::open(&options.flags.place, &options.flags.dtype, device, &options.graphs)?;
            let settings = options.flags.settle(&opened)?;
            (opened, settings)
        }
    };
    let ready = Ready::new(&opened, &settings)?;
    let images: Vec<u64> = (0..num).map(|i| first.wrapping_add(i)).collect();
    let named = |&image: &u64| match &origin {
        Some(origin) => Ok(Named { label: origin.label.clone(), name: None }),
        None => label_of(&opened, image, &settings),
    };
    let labels = images.iter().map(named).collect::<Result<Vec<_>>>()?;
    // Refused before any work, not with the batch they are in.
    opened.labels(&labels.iter().map(|l| l.label.clone()).collect::<Vec<_>>())?;
    stop::listen()?;

    let begun = Instant::now();
    let batches = images.len().div_ceil(options.batch);
    let bar = ProgressBar::new((batches * ready.plan.steps().len()) as u64);
    bar.set_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} steps, {eta} left {msg}")?);
    let (mut pictures, mut entries) = (Vec::new(), Vec::new());
    for (part, named) in images.chunks(options.batch).zip(labels.chunks(options.batch)) {
        let mut on_step = |progress: &Progress| -> Result<()> {
            bar.inc(1);
            if options.preview.is_some_and(|every| (progress.step.index + 1).is_multiple_of(every)) {
                let now = decode(&opened, &settings.latents(), &progress.x0)?;
                write_png(&options.out.join("preview.png"), &together(&now)?, None)?;
            }
            Ok(())
        };
        let labels: Vec<Option<Label>> = named.iter().map(|l| l.label.clone()).collect();
        let (latents, costs) = ready.sample(part, &labels, &mut on_step)?;
        let decoded = decode(&opened, &settings.latents(), &latents)?;
        for (i, (picture, cost)) in decoded.into_iter().zip(costs).enumerate() {
            let (image, Named { label, name }) = (part[i], named[i].clone());
            let file = format!("{image:06}.png");
            let origin = Origin { settings: settings.clone(), image, label: label.clone() };
            write_png(&options.out.join(&file), &picture, Some(&origin))?;
            entries.push(Entry { file, image, label, name, cost });
            pictures.push(picture);
        }
    }
    bar.finish_and_clear();
    write_png(&options.out.join("grid.png"), &together(&pictures)?, None)?;
    let report = Report {
        settings: &settings,
        device: format!("{:?}", opened.device.location()),
        parameters: opened.config.parameter_count(),
        seconds: begun.elapsed().as_secs_f64(),
        pictures: entries,
    };
    let text = serde_json::to_string_pretty(&report)?;
    files::replace(&options.out.join("samples.json"), |file| Ok(writeln!(file, "{text}")?))?;
    println!("{}", summary(&report, &options.out));
    Ok(())
}

/// One line: what a picture has cost, on average.
fn summary(report: &Report, out: &Path) -> String {
    let n = report.pictures.len();
    let mean = |of: fn(&Cost) -> f64| report.pictures.iter().map(|p| of(&p.cost)).sum::<f64>() / n as f64;
    format!(
        "{n} pictures in {}: each {} solves, {} applications, {} block passes, {:.3}e9 multiply-adds, mean residual \
         {:.2e}; {:.1} s in all",
        out.display(),
        mean(|c| c.solves as f64),
        mean(|c| c.applications as f64),
        mean(|c| c.block_passes as f64),
        mean(|c| c.multiply_adds as f64) / 1e9,
        mean(Cost::mean_residual),
        report.seconds
    )
}

/// Weights and codec may lie elsewhere than when the picture was made.
fn moved(then: &Place, now: &Place) -> Place {
    let weights = if now.hub.is_some() || now.weights.is_some() { now } else { then };
    Place { codec: now.codec.clone().or_else(|| then.codec.clone()), ..weights.clone() }
}

fn decode(opened: &Opened, normalisation: &Normalisation, latents: &Tensor) -> Result<Vec<Picture>> {
    // One by one: a decoder needs far more memory than the sampler, and its picture must not depend on its neighbours.
    let one = |i| -> Result<Picture> {
        let pixels = opened.codec.decode(&normalisation.undo(&latents.narrow(0, i, 1)?)?)?;
        from_tensor(&pixels)?.pop().context("a codec decodes to one picture a latent")
    };
    (0..latents.dim(0)?).map(one).collect()
}

fn together(pictures: &[Picture]) -> Result<Picture> {
    let columns = (pictures.len() as f64).sqrt().ceil() as usize;
    Ok(grid(pictures, columns.max(1), 2)?)
}
