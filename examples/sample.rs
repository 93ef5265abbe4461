//! Draws pictures of classes.
//!
//! ```sh
//! cargo run --release --example sample -- --weights path/to/model.pt --label 207 --label "red fox" --guidance 4
//! ```
//!
//! Writes one PNG a picture, `grid.png`, and `samples.json` with every setting and cost. `docs/sampling.md` explains
//! the flags.

mod device;
mod imagenet;
mod pictures;
mod sampling;
mod vectors;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Parser;
use fpdm_core::dit::Labels;
use fpdm_core::rng::{Stream, stream};
use pictures::options::Options;
use pictures::run::Named;
use rand::Rng;
use sampling::network::Label;

/// Draws pictures of classes with a fixed point diffusion model or a DiT, within a budget of block passes.
#[derive(Parser)]
#[command(version)]
struct Command {
    /// A class by number, or by ImageNet name; several take turns. [default: drawn by the seed]
    #[arg(long)]
    label: Vec<String>,
    /// Label vectors, for weights that take these, one a row; several take turns: .npy, .safetensors or .json. [default:
    /// the null vector]
    #[arg(long, value_name = "FILE", conflicts_with = "label")]
    label_file: Option<PathBuf>,
    /// Print ImageNet's classes and stop.
    #[arg(long)]
    list_labels: bool,
    #[command(flatten)]
    options: Options,
}

fn main() -> Result<()> {
    let Command { label, label_file, list_labels, options } = Command::parse();
    if list_labels {
        print!("{}", imagenet::list());
        return Ok(());
    }
    let vectors = label_file.as_deref().map(vectors::read).transpose()?;
    pictures::run::run(&options, 4, &|opened, image, settings| {
        let count = match (opened.config.labels, &vectors) {
            (Labels::None, _) => bail!(
                "these weights have no labels; name others with --hub org/name or --weights, a folder with config.json \
                 and model.safetensors or a weight file, or use the example sample_ffhq"
            ),
            (Labels::Vector(_), Some(rows)) => {
                let row = rows[(image % rows.len() as u64) as usize].clone();
                return Ok(Named { label: Some(Label::Vector(row)), name: None });
            }
            (Labels::Vector(n), None) if !label.is_empty() => {
                bail!("--label: these weights take vectors of {n} numbers; give them with --label-file")
            }
            (Labels::Vector(_), None) => return Ok(Named::default()),
            (Labels::Classes(n), Some(_)) => bail!("--label-file: these weights have {n} classes; use --label"),
            (Labels::Classes(n), None) => n,
        };
        let class = match label.is_empty() {
            true => stream(settings.seed, Stream::Label, image).random_range(0..count as u32),
            false => imagenet::parse(&label[(image % label.len() as u64) as usize], count)?,
        };
        Ok(Named { label: Some(Label::Class(class)), name: imagenet::name(class, count) })
    })
}
