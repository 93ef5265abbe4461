//! Decoding and encoding on a GPU, as JSON lines in the form of `benches/pytorch/codec_gpu.py`; see `gpu.rs` on why not
//! criterion. Weights do not change the speed: they are random.
//!
//! ```sh
//! cargo bench --features cuda --bench gpu_codec -- --batch 16 --side 256
//! ```

use std::time::Instant;

use anyhow::Result;
use candle_core::{DType, Device};
use candle_nn::VarMap;
use clap::Parser;
use fpdm_core::LatentCodec;
use fpdm_core::params::frozen;
use fpdm_core::rng::{Stream, normal_batch};
use fpdm_kernels::cuda;
use fpdm_vae::{AutoencoderKl, KlConfig, TinyAutoencoder, TinyConfig, fresh};

/// Times TAESD and the KL autoencoder of Stable Diffusion.
#[derive(Parser)]
struct Options {
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Of the pictures, in pixels.
    #[arg(long, default_value_t = 256)]
    side: usize,
    #[arg(long, default_value_t = 20)]
    repeats: usize,
    /// Only cases whose names start so.
    #[arg(long, default_value = "")]
    only: String,
    /// Given by `cargo bench`.
    #[arg(long)]
    bench: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let device = cuda::cuda(0, cuda::Cuda::default())?;
    let weights = VarMap::new();
    let tiny = |vb| TinyAutoencoder::new(TinyConfig::default(), vb);
    tiny(fresh(&weights, 0, DType::BF16, &device))?;
    time(&options, "taesd", &tiny(frozen(&weights)?)?, &device)?;
    training(&options, &device)?;
    let weights = VarMap::new();
    let large = |vb| AutoencoderKl::new(KlConfig::stable_diffusion(), vb);
    large(fresh(&weights, 0, DType::BF16, &device))?;
    time(&options, "kl", &large(frozen(&weights)?)?, &device)
}

fn time(options: &Options, name: &str, codec: &dyn LatentCodec, device: &Device) -> Result<()> {
    let (batch, side) = (options.batch, options.side);
    let ids: Vec<u64> = (0..batch as u64).collect();
    let z = normal_batch(0, Stream::Data, &ids, (4, side / 8, side / 8), DType::BF16, device)?;
    let x = normal_batch(1, Stream::Data, &ids, (3, side, side), DType::BF16, device)?.clamp(-1., 1.)?;
    report(options, &format!("{name}.decode"), device, || Ok(codec.decode(&z)?))?;
    report(options, &format!("{name}.encode"), device, || Ok(codec.encode(&x)?))
}

/// Forward and backward of the tiny decoder.
fn training(options: &Options, device: &Device) -> Result<()> {
    let weights = VarMap::new();
    let codec = TinyAutoencoder::new(TinyConfig::default(), fresh(&weights, 0, DType::BF16, device))?;
    let ids: Vec<u64> = (0..options.batch as u64).collect();
    let z = normal_batch(0, Stream::Data, &ids, (4, options.side / 8, options.side / 8), DType::BF16, device)?;
    report(options, "taesd.gradient", device, || Ok(codec.decode(&z)?.sum_all()?.backward()?))
}

/// The median of three means, each over `repeats` calls, after a warm-up.
fn report<T>(options: &Options, case: &str, device: &Device, mut f: impl FnMut() -> Result<T>) -> Result<()> {
    if !case.starts_with(&options.only) {
        return Ok(());
    }
    for _ in 0..3 {
        f()?;
    }
    let mut all = [0.; 3];
    for time in &mut all {
        device.synchronize()?;
        let start = Instant::now();
        for _ in 0..options.repeats {
            f()?;
        }
        device.synchronize()?;
        *time = start.elapsed().as_secs_f64() * 1e3 / options.repeats as f64;
    }
    all.sort_by(f64::total_cmp);
    println!("{}", serde_json::json!({ "case": case, "batch": options.batch, "side": options.side, "ms": all[1] }));
    Ok(())
}
