//! Draws faces: the main command.
//!
//! ```sh
//! cargo run --release --example sample_ffhq -- --weights path/to/model.safetensors --num 16 --budget 280
//! ```
//!
//! Writes one PNG a picture, `grid.png`, and `samples.json` with every setting and cost. `docs/sampling.md` explains
//! the flags.

mod pictures;
mod sampling;

use std::path::Path;

use anyhow::{Result, bail};
use clap::Parser;
use pictures::options::Options;
use pictures::run::Label;

/// Where the default weights live in the sources.
const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/assets");

/// Draws faces with a fixed point diffusion model, within a budget of block passes.
#[derive(Parser)]
#[command(version)]
struct Command {
    #[command(flatten)]
    options: Options,
}

fn main() -> Result<()> {
    let Command { mut options } = Command::parse();
    let settings = &mut options.settings;
    if settings.hub.is_none() && settings.weights.is_none() && options.from_image.is_none() {
        if !Path::new(ASSETS).join("model.safetensors").is_file() {
            bail!(
                "there are no default weights yet; name some with --hub org/name, or with --weights, a folder with \
                 config.json and model.safetensors or a weight file"
            );
        }
        settings.weights = Some(ASSETS.to_owned());
    }
    // A model of one class is unconditional: its label is 0.
    pictures::run::run(options, &|opened, _| Ok((opened.classes() > 0).then_some(Label { class: 0, name: None })))
}
