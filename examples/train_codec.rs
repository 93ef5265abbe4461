//! Trains a tiny autoencoder on images, in the layout of TAESD: a codec of its own, or one for another's latents.
//!
//! ```sh
//! cargo run --release --example train_codec -- images.tar --out run --export codec
//! cargo run --release --example train_codec -- images.tar --out run --latents-of madebyollin/taesd --export codec
//! cargo run --release --example train_codec -- images.tar --out run --latents-of stabilityai/sd-vae-ft-mse \
//!     --train-encoder --encoder-width 48 --decoder-width 72 --resume --export codec
//! ```

mod codec_training;
mod device;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use fpdm_train::{State, latest_checkpoint};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use codec_training::log::Log;
use codec_training::options::Options;
use codec_training::pictures::Images;
use codec_training::run::{NUMBERS, Run};
use codec_training::{evaluate, export};

fn main() -> Result<()> {
    let options = Options::parse();
    options.check()?;
    let images = Images::open(&options)?;
    let device = device::open(&options.device)?;
    let mut run = Run::new(&options, &device)?;
    let checkpoints = options.out.join("checkpoints");
    match latest_checkpoint(&checkpoints)? {
        Some(path) if options.resume => {
            run.restore(State::load(&path)?).with_context(|| path.display().to_string())?;
            eprintln!("goes on after step {} of {}", run.steps_done(), path.display());
        }
        Some(path) => anyhow::bail!("{} is there: add --resume, or take another --out", path.display()),
        None => ensure!(!options.resume, "--resume: {} holds no checkpoint", checkpoints.display()),
    }
    let [encoder, decoder, critic] = run.counts();
    eprintln!("{encoder} + {decoder} parameters, {} images, {:?}", images.len(), device.location());
    if critic > 0 {
        eprintln!("{critic} parameters of a critic");
    }

    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))?;

    std::fs::create_dir_all(&options.out)?;
    let mut log = Log::open(&options.out.join("log.jsonl"), run.steps_done())?;
    let held_out = images.held_out(options.eval_images)?.to_device(&device)?;
    let mut batches = images.batches(&options, run.steps_done())?;
    let bar = ProgressBar::new(options.steps).with_position(run.steps_done());
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {eta} left {msg}")?);
    let told = |log: &mut Log, whose: &str, kept: &evaluate::Kept, step: u64, seconds: f64| -> Result<()> {
        log.line(&json!({
            "step": step, "codec": whose, "held_out": kept.images, "psnr": kept.psnr,
            "gradient_ratio": kept.gradient_ratio, "seconds": seconds,
        }))?;
        let evaluate::Kept { psnr, gradient_ratio, .. } = kept;
        bar.suspend(|| println!("step {step}: {whose} {psnr:.2} dB, gradients {gradient_ratio:.3} of the originals'"));
        Ok(())
    };
    let evaluate = |run: &Run, log: &mut Log| -> Result<()> {
        let codec = run.averaged()?;
        let pairs = options.out.join("held_out.png");
        let kept = evaluate::held_out(&codec, |x| run.latents(&codec, x), &held_out, &pairs)?;
        told(log, "trained", &kept, run.steps_done(), run.seconds())
    };
    if let Some(teacher) = run.teacher().filter(|_| options.compare && run.steps_done() == 0) {
        let pairs = options.out.join("compared.png");
        let kept = evaluate::held_out(teacher, |x| Ok(teacher.encode(x)?.mean), &held_out, &pairs)?;
        told(&mut log, "latents-of", &kept, 0, 0.)?;
    }

    let more = |run: &Run| {
        let in_time = options.seconds.is_none_or(|most| run.seconds() < most);
        run.steps_done() < options.steps && in_time && !interrupted.load(Ordering::Relaxed)
    };
    let (mut since, mut evaluated) = (Instant::now(), None);
    let mut goes_on = more(&run);
    while goes_on {
        run.step(&batches.next()?)?;
        bar.inc(1);
        goes_on = more(&run);
        let done = run.steps_done();
        let [logs, evaluates, saves] =
            [options.log_every, options.eval_every, options.save_every].map(|every| done.is_multiple_of(every));
        // Nothing is saved or shown of steps that nobody has looked at.
        if logs || evaluates || saves || !goes_on {
            let report = run.report()?;
            let images_per_s = (report.steps * options.batch_size as u64) as f64 / since.elapsed().as_secs_f64();
            let mut line = json!({
                "step": done, "steps": report.steps, "lr": report.lr, "images_per_s": images_per_s,
                "seconds": run.seconds(),
            });
            for (name, mean) in NUMBERS.iter().zip(&report.means) {
                line[*name] = json!(mean);
            }
            log.line(&line)?;
            bar.set_message(format!("loss {:.4} {images_per_s:.1} images/s", report.means[0]));
            since = Instant::now();
        }
        if evaluates {
            evaluate(&run, &mut log)?;
            evaluated = Some(done);
            since = Instant::now();
        }
        if saves {
            run.state()?.save(&checkpoints, options.keep)?;
        }
    }
    bar.finish();
    let path = run.state()?.save(&checkpoints, options.keep)?;
    if evaluated != Some(run.steps_done()) {
        evaluate(&run, &mut log)?;
    }
    println!("step {} after {:.1} s: {}", run.steps_done(), run.seconds(), path.display());
    if let Some(folder) = &options.export {
        let config = export::write(folder, &options, &run, &held_out)?;
        println!("exported to {}, scaling factor {:.4}", folder.display(), config.scaling_factor);
    }
    Ok(())
}
