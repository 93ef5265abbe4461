//! Converts weights between the published layouts: any input to ours, to a `.pt` of the published code, to diffusers.
//!
//! ```text
//! cargo run --release --example convert -- train_checkpoint.pt weights/model.safetensors
//! cargo run --release --example convert -- org/dit weights/diffusion_pytorch_model.safetensors --to diffusers
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use candle_core::DType;
use clap::{Parser, ValueEnum};
use fpdm_core::Diffusion;
use fpdm_core::checkpoint::{
    Checkpoint, Layout, Untold, Which, diffusers_config, write_safetensors, write_text, write_torch,
};
use fpdm_core::dit::Config;
use fpdm_core::hub::{Hub, Source};
use indicatif::{ProgressBar, ProgressStyle};

#[derive(Parser)]
#[command(about = "Converts weights between the published layouts; config.json and diffusion.json go beside them")]
struct Arguments {
    /// A file, a folder, org/name[@revision] or org/name/file[@revision].
    input: String,
    /// The file to write; its config.json goes beside it.
    output: PathBuf,
    /// The set of weights in a training checkpoint.
    #[arg(long, value_enum, default_value = "ema")]
    which: Weights,
    /// The layout to write.
    #[arg(long, value_enum, default_value = "fpdm")]
    to: Target,
    /// The dtype to write.
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Precision,
    /// Attention heads, which no tensor tells; known for the published widths.
    #[arg(long)]
    heads: Option<usize>,
    /// Height and width of the latents, where no position embedding is stored.
    #[arg(long)]
    input_size: Option<usize>,
    /// The pre-, post- and final layers are told the time, which no tensor tells.
    #[arg(long)]
    timestep_conditioning: bool,
    /// Overwrites the output.
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Weights {
    Model,
    Ema,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Target {
    /// Our layout, for FPDM and DiT alike, as safetensors.
    Fpdm,
    /// The same names as a flat state dict for the published PyTorch code.
    PublishedPt,
    /// diffusers' DiTTransformer2DModel, as safetensors.
    Diffusers,
}

#[derive(Clone, Copy, ValueEnum)]
enum Precision {
    F32,
    F16,
    Bf16,
}

fn main() -> Result<()> {
    let args = Arguments::parse();
    let config_path = args.output.with_file_name("config.json");
    let diffusion_path = args.output.with_file_name(Diffusion::FILE);
    for path in [&args.output, &config_path, &diffusion_path] {
        if path.exists() && !args.force {
            bail!("{} exists; choose another output or pass --force", path.display());
        }
    }
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template("{msg} {bar} {bytes}/{total_bytes}")?);
    let found = Source::parse(&args.input)?.locate(&Hub::from_env()?, &mut |p| {
        bar.set_message(p.file.to_owned());
        bar.set_length(p.total.unwrap_or(p.received));
        bar.set_position(p.received);
    })?;
    bar.finish_and_clear();

    let which = match args.which {
        Weights::Model => Which::Model,
        Weights::Ema => Which::Ema,
    };
    let dtype = match args.dtype {
        Precision::F32 => DType::F32,
        Precision::F16 => DType::F16,
        Precision::Bf16 => DType::BF16,
    };
    let checkpoint = Checkpoint::from_files(&found.weights, which)?;
    checkpoint.check_finite()?;
    let config = config(&args, &checkpoint, found.config.as_deref())?;
    checkpoint.check_network(&config)?;
    let diffusion = found.diffusion.as_deref().map(|path| diffusion(path, &config)).transpose()?;
    if let Some(folder) = args.output.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
    }
    let text = match args.to {
        Target::Fpdm => {
            let layout = if checkpoint.layout() == Layout::Fpdm { Layout::Fpdm } else { Layout::Dit };
            write_safetensors(&args.output, &checkpoint.tensors(layout, dtype)?)?;
            config.to_json()
        }
        Target::PublishedPt => {
            write_torch(&args.output, &checkpoint.published(&config, dtype)?)?;
            config.to_json()
        }
        Target::Diffusers => {
            let text = serde_json::to_string_pretty(&diffusers_config(&config)?)?;
            write_safetensors(&args.output, &checkpoint.tensors(Layout::DiffusersDit, dtype)?)?;
            text
        }
    };
    write_text(&config_path, &text)?;
    match diffusion {
        Some(diffusion) => write_text(&diffusion_path, &diffusion.to_json())?,
        // With --force one may be there, which speaks of other weights.
        None if diffusion_path.exists() => std::fs::remove_file(&diffusion_path)?,
        None => {}
    }
    println!(
        "{}: {:?}, {} tensors, {} parameters -> {}, {}",
        args.input,
        checkpoint.layout(),
        checkpoint.names().len(),
        config.parameter_count(),
        args.output.display(),
        config_path.display()
    );
    Ok(())
}

/// The `diffusion.json` beside the input.
fn diffusion(path: &Path, config: &Config) -> Result<Diffusion> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    let diffusion = Diffusion::from_json(&text).with_context(|| format!("{}", path.display()))?;
    diffusion.check_network(config)?;
    Ok(diffusion)
}

/// The `config.json` beside the input, if it is ours; else what the tensors, diffusers' and the arguments say.
fn config(args: &Arguments, checkpoint: &Checkpoint, path: Option<&Path>) -> Result<Config> {
    let mut untold = Untold::default();
    if let Some(path) = path {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
        let json: serde_json::Value = serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
        if json.get("architecture").is_some() {
            return Config::from_json(&text).with_context(|| format!("{}", path.display()));
        }
        untold = Untold::from_diffusers(&json);
    }
    untold.num_heads = args.heads.or(untold.num_heads);
    untold.input_size = args.input_size.map(|side| [side; 2]).or(untold.input_size);
    untold.pre_post_timestep_conditioning = args.timestep_conditioning;
    checkpoint.config(&untold).context("pass --heads and --input-size for what no tensor tells")
}
