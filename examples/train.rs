//! Trains a fixed point diffusion model on encoded images.
//!
//! ```sh
//! cargo run --release --example encode_dataset -- images.tar --codec madebyollin/taesd --out latents
//! cargo run --release --example train -- latents --codec madebyollin/taesd --out run --size S
//! cargo run --release --example train -- latents --codec madebyollin/taesd --out run --size S --resume --export model
//! ```

mod training;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use candle_nn::VarBuilder;
use clap::Parser;
use fpdm_core::dit::{Fpdit, init};
use fpdm_train::{LatentShards, State, StepReport, Trainer, latest_checkpoint};
use indicatif::{ProgressBar, ProgressStyle};

use training::options::Options;
use training::{curves, export, samples};

fn main() -> Result<()> {
    let options = Options::parse();
    let device = Device::new_cuda(0).or_else(|_| Device::new_metal(0)).unwrap_or(Device::Cpu);
    let data = LatentShards::open(&options.data, options.seed, &device)?;
    data.verify()?;
    let config = options.network(&data)?;
    let dtype = options.dtype()?;
    let weights = init(&config, options.seed, dtype, &device)?;
    let model = Fpdit::new(&config, VarBuilder::from_varmap(&weights, dtype, &device))?;
    let mut trainer = Trainer::new(
        model,
        config.labels,
        &weights,
        options.objective()?,
        options.estimator()?,
        options.settings(),
        options.description(&config),
    )?;

    let checkpoints = options.out.join("checkpoints");
    match latest_checkpoint(&checkpoints)? {
        Some(path) if options.resume => {
            trainer.restore(&State::load(&path)?).with_context(|| path.display().to_string())?;
            eprintln!("goes on after step {} of {}", trainer.steps_done(), path.display());
        }
        Some(path) => anyhow::bail!("{} is there: add --resume, or take another --out", path.display()),
        None => ensure!(!options.resume, "--resume: {} holds no checkpoint", checkpoints.display()),
    }
    eprintln!("{} parameters, {} samples, {:?}", config.parameter_count(), data.index().samples(), device.location());

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
    let save = |trainer: &Trainer<Fpdit>| Ok::<_, anyhow::Error>(trainer.state()?.save(&checkpoints, options.keep)?);

    while trainer.steps_done() < options.steps && !interrupted.load(Ordering::Relaxed) {
        let report = trainer.step(&data).with_context(|| match latest_checkpoint(&checkpoints) {
            Ok(Some(path)) => format!("the last good checkpoint is {}", path.display()),
            _ => "there is no checkpoint yet".into(),
        })?;
        writeln!(log, "{}", serde_json::to_string(&report)?)?;
        bar.inc(1);
        bar.set_message(line(&report));
        let done = report.step;
        reports.push(report);
        if done % options.save_every == 0 {
            save(&trainer)?;
            curves::draw(&options.out.join("curves.svg"), &reports)?;
        }
        if options.sample_every > 0 && done % options.sample_every == 0 {
            samples::write(&options, &config, &trainer, &device, done)?;
        }
    }
    bar.finish();
    let path = save(&trainer)?;
    curves::draw(&options.out.join("curves.svg"), &reports)?;
    println!("step {}: {}", trainer.steps_done(), path.display());
    if let Some(folder) = &options.export {
        export::write(folder, &options, &config, &trainer)?;
        println!("exported to {}", folder.display());
    }
    Ok(())
}

fn line(report: &StepReport) -> String {
    let StepReport { loss, grad_norm, n, m, residual, images_per_s, .. } = report;
    format!("loss {loss:.4} norm {grad_norm:.3} n {n} m {m} residual {residual:.1e} {images_per_s:.1} images/s")
}
