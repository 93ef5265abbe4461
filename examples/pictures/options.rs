//! Flags of the commands that make pictures.

use std::path::PathBuf;

use clap::Args;

use crate::sampling::flags::Flags;

/// Flags of every sampling command.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) flags: Flags,
    /// Pictures to make. [default: 16 faces, or 4 of classes]
    #[arg(long)]
    pub(crate) num: Option<u64>,
    /// Pictures at a time; they do not depend on it.
    #[arg(long, default_value_t = 16)]
    pub(crate) batch: usize,
    /// The number of the first picture: picture i depends on the seed and i alone.
    #[arg(long, default_value_t = 0)]
    pub(crate) first: u64,
    /// Where they go; made if missing.
    #[arg(long, default_value = "samples")]
    pub(crate) out: PathBuf,
    /// auto, cpu, cuda or metal.
    #[arg(long, default_value = "auto")]
    pub(crate) device: String,
    /// Record the network's work on a GPU and replay it: auto, where it pays; on, or off. Pictures do not depend on it.
    #[arg(long, default_value = "auto")]
    pub(crate) graphs: String,
    /// Write the current clean estimates to preview.png after every so many steps.
    #[arg(long, value_name = "STEPS", num_args = 0..=1, default_missing_value = "1")]
    pub(crate) preview: Option<usize>,
    /// Repeat the picture that this PNG holds, with the settings stored in it.
    #[arg(long, value_name = "PNG")]
    pub(crate) from_image: Option<PathBuf>,
}
