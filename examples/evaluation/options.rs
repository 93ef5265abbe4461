//! The choices of the command.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use fpdm_eval::{Features, KidSubsets};

/// Compares samples with training pictures and with held-out ones.
#[derive(Parser, Debug)]
pub(crate) struct Options {
    /// The samples: PATH or PATH#A..B, a folder of pictures, a tar archive, a folder of archives, or latents
    pub(crate) samples: String,
    /// The training pictures, likewise: what FD, precision and recall are against, and neighbours come from
    #[arg(long)]
    pub(crate) reference: String,
    /// Pictures that were not trained on: what KID is against, and what the neighbours of samples are measured by
    #[arg(long)]
    pub(crate) held_out: Option<String>,
    /// The network whose features are compared
    #[arg(long, value_enum, default_value_t = Network::Efficientnet)]
    pub(crate) features: Network,
    /// Its weights: a file, a folder or a Hub repository; timm/tf_efficientnet_lite0.in1k for efficientnet if absent
    #[arg(long)]
    pub(crate) weights: Option<String>,
    /// What decodes sets of latents: a Hub repository, a folder or a file
    #[arg(long)]
    pub(crate) codec: Option<String>,
    /// Encode and decode the samples with this codec first, to measure the codec
    #[arg(long)]
    pub(crate) through: Option<String>,
    /// Cut the centre square of every picture and scale it to this side first
    #[arg(long)]
    pub(crate) side: Option<usize>,
    /// The folder for evaluation.json, neighbours.png and closest.png
    #[arg(long, default_value = "evaluation")]
    pub(crate) out: PathBuf,
    /// The folder that features are kept in; that of --out if absent
    #[arg(long)]
    pub(crate) cache: Option<PathBuf>,
    /// Pictures in one pass through the network
    #[arg(long, default_value_t = 32)]
    pub(crate) batch_size: usize,
    /// The neighbour whose distance is the radius of a picture, for precision and recall
    #[arg(long, default_value_t = 3)]
    pub(crate) k: usize,
    /// Subsets that the spread of KID comes from
    #[arg(long, default_value_t = 100)]
    pub(crate) subsets: usize,
    /// Pictures in a subset
    #[arg(long, default_value_t = 1000)]
    pub(crate) subset_size: usize,
    /// What the subsets are drawn with
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Samples shown beside their neighbours
    #[arg(long, default_value_t = 16)]
    pub(crate) shown: usize,
    /// auto, cpu, cuda or metal
    #[arg(long, default_value = "auto")]
    pub(crate) device: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    Efficientnet,
    Inception,
}

impl Network {
    pub(crate) fn features(self) -> Features {
        match self {
            Network::Efficientnet => Features::EfficientNetLite0,
            Network::Inception => Features::InceptionV3,
        }
    }
}

impl Options {
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(self.batch_size > 0, "--batch-size: 0; give at least 1");
        ensure!(self.k > 0, "--k: 0; give at least 1");
        ensure!(self.subsets > 0, "--subsets: 0; give at least 1");
        ensure!(self.subset_size > 1, "--subset-size: {}; give at least 2", self.subset_size);
        ensure!(self.side != Some(0), "--side: 0; give at least 1");
        self.weights().map(drop)
    }

    pub(crate) fn weights(&self) -> Result<&str> {
        match (&self.weights, self.features) {
            (Some(weights), _) => Ok(weights),
            (None, Network::Efficientnet) => Ok("timm/tf_efficientnet_lite0.in1k"),
            (None, Network::Inception) => {
                anyhow::bail!(
                    "--features inception has no default; give --weights pt_inception-2015-12-05-6726825d.pth"
                )
            }
        }
    }

    pub(crate) fn cache(&self) -> &PathBuf {
        self.cache.as_ref().unwrap_or(&self.out)
    }

    pub(crate) fn kid(&self) -> KidSubsets {
        KidSubsets { count: self.subsets, size: self.subset_size, seed: self.seed }
    }
}
