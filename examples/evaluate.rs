//! How far samples are from the data, and how near to single training pictures.
//!
//! ```sh
//! cargo run --release --example evaluate -- samples --reference faces.tar#..12000 --held-out faces.tar#12000..
//! ```
//!
//! A set is a folder of pictures, a tar archive, a folder of them, encoded latents with `--codec`, or a safetensors file
//! of latents; `#A..B` takes a run of it. Features are kept in `--cache`, so that a second run with the same data only
//! computes distances.

mod device;
mod evaluation;

use anyhow::{Context, Result};
use clap::Parser;
use fpdm_core::checkpoint::write_text;

use evaluation::features::Extractor;
use evaluation::options::Options;
use evaluation::set::{Reading, Set};
use evaluation::{report, sheet};

fn main() -> Result<()> {
    let options = Options::parse();
    options.check()?;
    fpdm_kernels::keep_freed_memory();
    let device = device::open(&options.device)?;
    // Whatever can be refused is refused before any work.
    let how = Reading { codec: options.codec.as_deref(), side: options.side, through: None };
    let samples = Set::open(&options.samples, Reading { through: options.through.as_deref(), ..how }, &device)?;
    let reference = Set::open(&options.reference, how, &device)?;
    let held_out = options.held_out.as_ref().map(|set| Set::open(set, how, &device)).transpose()?;
    let (features, weights) = (options.features.features(), options.weights()?);
    let extractor = Extractor::open(features, weights, options.cache().clone(), options.batch_size, &device)?;
    std::fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;

    let of_reference = extractor.features(&reference)?;
    let of_held_out = held_out.as_ref().map(|set| extractor.features(set)).transpose()?;
    let of_samples = extractor.features(&samples)?;
    let sets = report::Sets { samples: &of_samples, reference: &of_reference, held_out: of_held_out.as_ref() };
    let found = report::distances(&options, extractor.name(), &sets)?;
    let mut account = found.json(&options, extractor.name(), &sets)?;
    account["closest"] = sheet::told(&samples, &reference, &found.neighbours);
    let text = serde_json::to_string_pretty(&account)?;
    write_text(options.out.join("evaluation.json"), &(text + "\n"))?;
    sheet::write(&options, &samples, &reference, &found.neighbours)?;
    println!("{}", found.summary());
    println!("{}", options.out.join("evaluation.json").display());
    Ok(())
}
