//! The network of a run: an FPDM, or the DiT that it is measured against.

use anyhow::{Result, bail, ensure};
use candle_core::DType;
use candle_nn::VarBuilder;
use clap::{Args, ValueEnum};
use fpdm_core::ImplicitModel;
use fpdm_core::dit::{Architecture, Config, Dit, Fpdit, Labels, Size};
use fpdm_sample::Explicit;

/// What the network is made of.
#[derive(Args, Debug)]
pub(crate) struct NetworkOptions {
    /// fpdm, or dit: a plain stack of --depth blocks, trained alike.
    #[arg(long, default_value = "fpdm")]
    pub architecture: Kind,
    /// tiny, S, B, L or XL.
    #[arg(long, default_value = "S")]
    pub size: String,
    /// Side of the patches that become tokens, in latents.
    #[arg(long, default_value_t = 2)]
    pub patch: usize,
    /// Blocks before the implicit part (fpdm).
    #[arg(long, default_value_t = 1)]
    pub pre: usize,
    /// Blocks of one application (fpdm).
    #[arg(long, default_value_t = 1)]
    pub group: usize,
    /// Blocks after the implicit part (fpdm).
    #[arg(long, default_value_t = 1)]
    pub post: usize,
    /// Blocks of the stack (dit) [default: that of the size]
    #[arg(long)]
    pub depth: Option<usize>,
    /// Tells the time to the blocks before and after the implicit part too (fpdm).
    #[arg(long)]
    pub condition_pre_post: bool,
    /// Leaves the classes of the data out.
    #[arg(long)]
    pub unconditional: bool,
    /// f32 or bf16: what the network works in. Master weights are f32.
    #[arg(long, default_value = "f32")]
    pub dtype: String,
}

/// How depth is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// By solving.
    Fpdm,
    /// By stacking.
    Dit,
}

impl NetworkOptions {
    /// The network for latents `(C, H, W)` of so many classes.
    ///
    /// Without classes there is no label at all where the time reaches every block; where it does not, one class is
    /// what the outer blocks are conditioned on.
    pub(crate) fn config(&self, shape: &[usize], classes: usize, learn_sigma: bool) -> Result<Config> {
        let &[in_channels, height, width] = shape else { bail!("latents of {shape:?} are not (C, H, W)") };
        let (size, tiny) = match self.size.as_str() {
            "tiny" => (Size::S, true),
            "S" => (Size::S, false),
            "B" => (Size::B, false),
            "L" => (Size::L, false),
            "XL" => (Size::XL, false),
            other => bail!("--size: `{other}` is none of tiny, S, B, L, XL"),
        };
        let mut config = match self.architecture {
            Kind::Fpdm => {
                ensure!(self.depth.is_none(), "--depth is for --architecture dit; use --pre, --group and --post");
                Config {
                    pre_depth: self.pre,
                    group: self.group,
                    post_depth: self.post,
                    pre_post_timestep_conditioning: self.condition_pre_post,
                    ..Config::fpdm(size, self.patch)
                }
            }
            Kind::Dit => {
                let base = Config::dit(size, self.patch);
                Config { depth: self.depth.unwrap_or(base.depth), ..base }
            }
        };
        if tiny {
            (config.hidden_size, config.num_heads) = (64, 4);
        }
        let told_everywhere = self.architecture == Kind::Dit || self.condition_pre_post;
        let labels = match classes {
            n if n > 1 && !self.unconditional => Labels::Classes(n),
            _ if told_everywhere => Labels::None,
            _ => Labels::Classes(1),
        };
        let config = Config { input_size: [height, width], in_channels, labels, learn_sigma, ..config };
        config.check()?;
        Ok(config)
    }

    /// What the network works in.
    pub(crate) fn dtype(&self) -> Result<DType> {
        match self.dtype.as_str() {
            "f32" => Ok(DType::F32),
            "bf16" => Ok(DType::BF16),
            other => bail!("--dtype: `{other}` is neither f32 nor bf16"),
        }
    }
}

/// The network with the weights of `vb`. A DiT is a problem that one application solves.
pub(crate) fn build(config: &Config, vb: VarBuilder) -> Result<Box<dyn ImplicitModel>> {
    Ok(match config.architecture {
        Architecture::Fpdm => Box::new(Fpdit::new(config, vb)?),
        Architecture::Dit => Box::new(Explicit::new(Dit::new(config, vb)?)),
    })
}
