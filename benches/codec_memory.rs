//! Peak memory of a decode by the autoencoder of Stable Diffusion: `codec_memory SIDE [TILE OVERLAP
//! [PASSES]]`, in latents; without passes, tiles are separate.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use fpdm_vae::{AutoencoderKl, KlConfig, LatentCodec, Tiled, TiledKl, Tiling};

/// Megabytes that the process had at most, as Linux counts them.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}

fn main() -> fpdm_vae::Result<()> {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let side = numbers.first().copied().unwrap_or(32);
    let vb = VarBuilder::zeros(DType::F32, &Device::Cpu);
    let codec = AutoencoderKl::new(KlConfig::stable_diffusion(), vb)?;
    let before = peak();
    let codec: Box<dyn LatentCodec> = match *numbers.as_slice() {
        [_, tile, overlap] => Box::new(Tiled::new(Box::new(codec), Tiling { tile, overlap, factor: 8 })?),
        [_, tile, overlap, passes, ..] => Box::new(TiledKl::new(codec, Tiling { tile, overlap, factor: 8 }, passes)?),
        _ => Box::new(codec),
    };
    let start = Instant::now();
    let pixels = codec.decode(&Tensor::zeros((1, 4, side, side), DType::F32, &Device::Cpu)?)?;
    let seconds = start.elapsed().as_secs_f64();
    println!("{:?} in {seconds:.1} s; peak {:?} MB, {before:?} MB of it before", pixels.dims(), peak());
    Ok(())
}
