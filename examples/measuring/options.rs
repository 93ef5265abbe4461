//! The choices of the command.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use fpdm_eval::KidSubsets;

/// Measures what samples are worth for what they cost.
#[derive(Parser, Debug)]
#[command(version)]
pub(crate) struct Command {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Verb {
    /// Draws samples of models under many settings and appends a line of JSON for each
    Measure(Box<Measure>),
    /// Writes lines as a table in Markdown, the spread over seeds included
    Table(Table),
    /// Writes what training runs have cost as a table in Markdown
    Costs(Costs),
}

#[derive(Args, Debug)]
pub(crate) struct Measure {
    /// Folders that `train --export` has written, FOLDER or NAME=FOLDER; folders of one name are seeds of one model
    #[arg(required = true, value_name = "MODEL")]
    pub(crate) models: Vec<String>,
    /// What decodes the samples: a Hub repository, a folder or a file [default: what each model says]
    #[arg(long)]
    pub(crate) codec: Option<String>,
    /// The training pictures, as `evaluate` takes them: what FD is against
    #[arg(long)]
    pub(crate) reference: String,
    /// Pictures that were not trained on, likewise: what KID is against
    #[arg(long)]
    pub(crate) held_out: String,
    /// Cut the centre square of every picture of the two sets and scale it to this side first
    #[arg(long)]
    pub(crate) side: Option<usize>,
    /// Files with a line of JSON for each setting, or names: budgets, equal, iterations, reuse, allocation, plain, guidance
    #[arg(long, value_delimiter = ',', required = true)]
    pub(crate) settings: Vec<String>,
    /// Samples of a setting
    #[arg(long, default_value_t = 2048)]
    pub(crate) num: u64,
    /// Samples at a time
    #[arg(long, default_value_t = 256)]
    pub(crate) batch: usize,
    /// Samples that are decoded and looked at at a time
    #[arg(long, default_value_t = 64)]
    pub(crate) decode_batch: usize,
    /// Seeds of the noise; each is a line of its own
    #[arg(long, value_delimiter = ',', default_value = "0")]
    pub(crate) seed: Vec<u64>,
    /// f32, f16 or bf16 for the models' weights
    #[arg(long, default_value = "f32")]
    pub(crate) dtype: String,
    /// Whether networks are recorded on a GPU and replayed: auto, on or off
    #[arg(long, default_value = "auto")]
    pub(crate) graphs: String,
    /// f32, f16 or bf16 for the codec's weights
    #[arg(long, default_value = "f32")]
    pub(crate) codec_dtype: String,
    /// EfficientNet-Lite0's weights: a file, a folder or a Hub repository
    #[arg(long, default_value = "timm/tf_efficientnet_lite0.in1k")]
    pub(crate) weights: String,
    /// Where features are computed: auto, which is --device, or cpu, beside an accelerator that samples
    #[arg(long, default_value = "auto")]
    pub(crate) features_device: String,
    /// The folder that features of the two sets are kept in
    #[arg(long, default_value = "features")]
    pub(crate) cache: PathBuf,
    /// Subsets that the spread of KID comes from
    #[arg(long, default_value_t = 100)]
    pub(crate) subsets: usize,
    /// Pictures in a subset
    #[arg(long, default_value_t = 1000)]
    pub(crate) subset_size: usize,
    /// Where lines are appended; what is there already is not measured again
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// A folder for the latents of every setting, which `evaluate` reads
    #[arg(long)]
    pub(crate) keep_latents: Option<PathBuf>,
    /// auto, cpu, cuda or metal
    #[arg(long, default_value = "auto")]
    pub(crate) device: String,
}

impl Measure {
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(self.num > 1, "--num {}: distances need 2 samples or more", self.num);
        ensure!(self.batch > 0, "--batch 0: use 1 or more");
        ensure!(self.decode_batch > 0, "--decode-batch 0: use 1 or more");
        ensure!(self.subsets > 0, "--subsets 0: use 1 or more");
        ensure!(self.subset_size > 1, "--subset-size {}: use 2 or more", self.subset_size);
        ensure!(self.side != Some(0), "--side 0: use 1 or more");
        Ok(())
    }

    pub(crate) fn kid(&self) -> KidSubsets {
        KidSubsets { count: self.subsets, size: self.subset_size, seed: 0 }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Table {
    /// Files of lines that `measure` has written
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Only lines that were measured for these, as `measure --settings` had them
    #[arg(long)]
    pub(crate) settings: Option<String>,
    /// What rows are sorted by
    #[arg(long, value_enum, default_value_t = By::BlockPasses)]
    pub(crate) by: By,
    /// A file for the table, which else is printed
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
}

/// What rows are sorted by; equal ones stay as they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum By {
    /// As lines come.
    Line,
    /// What a sample costs in transformer blocks.
    BlockPasses,
    /// What it costs in multiplications.
    MultiplyAdds,
    /// What it costs in time.
    Seconds,
    /// How far the samples are.
    Fd,
}

#[derive(Args, Debug)]
pub(crate) struct Costs {
    /// Folders that `train --out` has written, FOLDER or NAME=FOLDER; folders of one name are seeds of one model
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<String>,
    /// A file for the table, which else is printed
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
}

/// NAME=FOLDER, or a folder whose own name it is.
pub(crate) fn named(text: &str) -> (String, String) {
    match text.split_once('=') {
        Some((name, folder)) => (name.to_owned(), folder.to_owned()),
        None => {
            let path = std::path::Path::new(text);
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
            (name, text.to_owned())
        }
    }
}
