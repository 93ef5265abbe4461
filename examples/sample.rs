//! Draws pictures of classes.
//!
//! ```sh
//! cargo run --release --example sample -- --weights path/to/model.pt --label 207 --label "red fox" --guidance 4
//! ```
//!
//! Writes one PNG a picture, `grid.png`, and `samples.json` with every setting and cost. `docs/sampling.md` explains
//! the flags.

mod imagenet;
mod pictures;
mod sampling;

use anyhow::{Result, bail};
use clap::Parser;
use fpdm_core::rng::{Stream, stream};
use pictures::options::Options;
use pictures::run::Label;
use rand::Rng;

/// Draws pictures of classes with a fixed point diffusion model or a DiT, within a budget of block passes.
#[derive(Parser)]
#[command(version)]
struct Command {
    /// A class by number, or by ImageNet name; several take turns. [default: drawn by the seed]
    #[arg(long)]
    label: Vec<String>,
    /// Print ImageNet's classes and stop.
    #[arg(long)]
    list_labels: bool,
    #[command(flatten)]
    options: Options,
}

fn main() -> Result<()> {
    let Command { label, list_labels, options } = Command::parse();
    if list_labels {
        print!("{}", imagenet::list());
        return Ok(());
    }
    let seed = options.settings.seed;
    pictures::run::run(options, &|opened, image| {
        let count = opened.classes();
        if count == 0 {
            bail!("these weights have no classes; use the example sample_ffhq");
        }
        let of = |i: u64| imagenet::parse(&label[i as usize % label.len()], count);
        let class = match label.is_empty() {
            true => stream(seed, Stream::Label, image).random_range(0..count as u32),
            false => of(image)?,
        };
        Ok(Some(Label { class, name: imagenet::name(class, count) }))
    })
}
