//! Trains a fixed point diffusion model on encoded images, images that are encoded on the fly, or published features.
//!
//! ```sh
//! cargo run --release --example encode_dataset -- images.tar --codec madebyollin/taesd --out latents
//! cargo run --release --example train -- latents --out run --size S
//! cargo run --release --example train -- latents --out run --size S --resume --export model
//! ```

mod device;
mod training;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use candle_nn::VarBuilder;
use clap::Parser;
use fpdm_core::ImplicitModel;
use fpdm_core::dit::{Labels, init};
use fpdm_train::{Ahead, Pairs, State, StepReport, Trainer, latest_checkpoint};
use indicatif::{ProgressBar, ProgressStyle};

use training::data::Data;
use training::options::Options;
use training::{curves, export, network, samples, summary};

type Run = Trainer<Box<dyn ImplicitModel>>;

/// Batches that are ready before they are needed.
const DEPTH: usize = 8;

fn main() -> Result<()> {
    let options = Options::parse();
    options.check()?;
    let device = device::open(&options.device)?;
    let data = Data::open(&options.data, options.seed, &device)?;
    let config = options.network.config(&data.shape, data.classes, options.loss.learns_variance())?;
    let dtype = options.network.dtype()?;
    let weights = init(&config, options.seed, dtype, &device)?;
    let model = network::build(&config, VarBuilder::from_varmap(&weights, dtype, &device))?;
    let classes = matches!(config.labels, Labels::Classes(n) if n > 1);
    let objective = options.loss.objective(classes)?;
    let description = options.description(&config, &objective, &data);
    let estimator = options.gradient.estimator(config.architecture)?;
    let settings = options.settings();
    let mut trainer = Trainer::new(model, config.labels, &weights, objective, estimator, settings, description)?;

    let checkpoints = options.out.join("checkpoints");
    match latest_checkpoint(&checkpoints)? {
        Some(path) if options.resume => {
            trainer.restore(&State::load(&path)?).with_context(|| path.display().to_string())?;
            eprintln!("goes on after step {} of {}", trainer.steps_done(), path.display());
        }
        Some(path) => anyhow::bail!("{} is there: add --resume, or take another --out", path.display()),
        None => ensure!(!options.resume, "--resume: {} holds no checkpoint", checkpoints.display()),
    }
    eprintln!("{} parameters, {} samples, {:?}", config.parameter_count(), data.samples, device.location());
    if let Some(by) = &data.normalisation {
        eprintln!("latents are (x − {:?}) / {:?}", by.mean, by.std);
    }

    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))?;

    fs::create_dir_all(&options.out)?;
    let log_path = options.out.join("log.jsonl");
    let mut reports = curves::read(&log_path, trainer.steps_done())?;
    curves::rewrite(&log_path, &reports)?;
    let mut log = OpenOptions::new().append(true).open(&log_path)?;
    let bar = ProgressBar::new(options.steps).with_position(trainer.steps_done());
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {eta} left {msg}")?);
    let save = |trainer: &Run| Ok::<_, anyhow::Error>(trainer.state()?.save(&checkpoints, options.keep)?);
    let last_good = || match latest_checkpoint(&checkpoints) {
        Ok(Some(path)) => format!("the last good checkpoint is {}", path.display()),
        _ => "there is no checkpoint yet".into(),
    };

    let threads = options.data_threads.unwrap_or(if device.is_cpu() { 0 } else { 4 });
    let mut pairs = pairs(&trainer, &data, threads)?;
    let more = |trainer: &Run| {
        let time = options.seconds.is_none_or(|most| trainer.seconds() < most);
        trainer.steps_done() < options.steps && time && !interrupted.load(Ordering::Relaxed)
    };
    let mut goes_on = more(&trainer);
    while goes_on {
        trainer.advance(&mut pairs).with_context(last_good)?;
        bar.inc(1);
        goes_on = more(&trainer);
        let done = trainer.steps_done();
        let saves = done % options.save_every == 0;
        let samples_now = options.sample_every > 0 && done % options.sample_every == 0;
        // Nothing is saved or shown of steps that nobody has looked at.
        if done % options.log_every == 0 || saves || samples_now || !goes_on {
            let report = trainer.report().with_context(last_good)?;
            writeln!(log, "{}", serde_json::to_string(&report)?)?;
            bar.set_message(line(&report));
            reports.push(report);
        }
        if saves {
            save(&trainer).with_context(last_good)?;
            curves::draw(&options.out.join("curves.svg"), &reports)?;
        }
        if samples_now {
            samples::write(&options, &config, &trainer, data.normalisation.as_ref(), &device, done)?;
        }
    }
    bar.finish();
    let path = save(&trainer).with_context(last_good)?;
    curves::draw(&options.out.join("curves.svg"), &reports)?;
    data.report_skipped();
    let told = summary::of(&options, &config, &trainer, &reports, &device);
    summary::write(&options.out, &told)?;
    println!("{told}");
    println!("step {} after {:.1} s: {}", trainer.steps_done(), trainer.seconds(), path.display());
    if let Some(folder) = &options.export {
        export::write(folder, &options, &config, &trainer, &data)?;
        println!("exported to {}", folder.display());
    }
    Ok(())
}

/// What makes the pairs of a batch: threads ahead of the device, or whoever asks.
fn pairs(trainer: &Run, data: &Data, threads: usize) -> Result<Box<dyn FnMut(u64) -> fpdm_core::Result<Pairs>>> {
    let (recipe, source) = (trainer.recipe(), data.source.clone());
    let make = move |index| recipe.pairs(&*source, index);
    if threads == 0 {
        return Ok(Box::new(make));
    }
    let ahead = Ahead::new(threads, DEPTH, make)?;
    Ok(Box::new(move |index| ahead.get(index)))
}

fn line(report: &StepReport) -> String {
    let StepReport { loss, grad_norm, n, m, residual, images_per_s, .. } = report;
    format!("loss {loss:.4} norm {grad_norm:.3} n {n} m {m} residual {residual:.1e} {images_per_s:.1} images/s")
}
