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
use evaluation::set::Set;
use evaluation::{report, sheet};

fn main() -> Result<()> {
    let options = Options::parse();
    options.check()?;
    fpdm_kernels::keep_freed_memory();
    let device = device::open(&options.device)?;
    // Whatever can be refused is refused before any work.
    let samples = Set::open(&options.samples, &options, options.through.as_deref(), &device)?;
    let reference = Set::open(&options.reference, &options, None, &device)?;
    let held_out = options.held_out.as_ref().map(|set| Set::open(set, &options, None, &device)).transpose()?;
    let extractor = Extractor::open(&options, &device)?;
    std::fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;

    let of_reference = extractor.features(&reference)?;
    let of_held_out = held_out.as_ref().map(|set| extractor.features(set)).transpose()?;
    let of_samples = extractor.features(&samples)?;
    let sets = report::Sets { samples: &of_samples, reference: &of_reference, held_out: of_held_out.as_ref() };
    let found = report::distances(&options, extractor.name(), &sets)?;
    let text = serde_json::to_string_pretty(&found.json(&options, extractor.name(), &sets)?)?;
    write_text(options.out.join("evaluation.json"), &(text + "\n"))?;
    sheet::write(&options, &samples, &reference, &found.neighbours)?;
    println!("{}", found.summary());
    println!("{}", options.out.join("evaluation.json").display());
    Ok(())
}
