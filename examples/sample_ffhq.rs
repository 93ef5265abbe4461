//! Draws faces: the main command.
//!
//! ```sh
//! cargo run --release --example sample_ffhq
//! cargo run --release --example sample_ffhq -- --weights path/to/model.safetensors --num 16 --budget 280
//! ```
//!
//! Without weights it takes those that it comes with, `examples/assets`. Writes one PNG a picture, `grid.png`, and
//! `samples.json` with every setting and cost. `docs/sampling.md` explains the flags.

mod device;
mod pictures;
mod sampling;

use anyhow::Result;
use clap::Parser;
use fpdm_core::dit::Labels;
use pictures::options::Options;
use pictures::run::Named;
use sampling::network::Label;

/// Draws faces with a fixed point diffusion model, within a budget of block passes.
#[derive(Parser)]
#[command(version)]
struct Command {
    #[command(flatten)]
    options: Options,
}

fn main() -> Result<()> {
    let Command { options } = Command::parse();
    // A model of one class is unconditional: its label is 0.
    pictures::run::run(&options, 16, &|opened, _, _| {
        let label = matches!(opened.config.labels, Labels::Classes(_)).then_some(Label::Class(0));
        Ok(Named { label, name: None })
    })
}
