//! A picture in tiles beside the whole, for a random autoencoder of Stable Diffusion's shape: `codec_tiles TILE OVERLAP
//! TILES PASSES...`, in latents, the picture one tile high.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarMap;
use fpdm_core::rng::{Stream, normal, stream};
use fpdm_vae::{AutoencoderKl, KlConfig, LatentCodec, Tiled, TiledKl, Tiling, fresh};

/// The largest difference for each distance from the nearest column that tiles share, in latents; 0 is such a column.
fn by_distance(a: &Tensor, b: &Tensor, tiling: Tiling) -> fpdm_vae::Result<Vec<f32>> {
    let columns = (a - b)?.abs()?.flatten_to(2)?.max(0)?.to_vec1::<f32>()?;
    let Tiling { tile, overlap, factor } = tiling;
    let width = columns.len() / factor;
    let shared: Vec<usize> = (1..)
        .map(|i| i * (tile - overlap))
        .take_while(|at| at + overlap < width)
        .flat_map(|at| at..at + overlap)
        .collect();
    let mut worst = Vec::new();
    for (pixel, &difference) in columns.iter().enumerate() {
        let distance = shared.iter().map(|s| s.abs_diff(pixel / factor)).min().unwrap_or(0);
        worst.resize(worst.len().max(distance + 1), 0f32);
        worst[distance] = worst[distance].max(difference);
    }
    Ok(worst)
}

fn main() -> fpdm_vae::Result<()> {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let &[tile, overlap, tiles, ref passes @ ..] = numbers.as_slice() else {
        println!("codec_tiles TILE OVERLAP TILES PASSES...");
        return Ok(());
    };
    let tiling = Tiling { tile, overlap, factor: 8 };
    tiling.check()?;
    let vars = VarMap::new();
    AutoencoderKl::new(KlConfig::stable_diffusion(), fresh(&vars, 0, DType::F32, &Device::Cpu))?;
    let data = vars.data().lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // Twice PyTorch's bounds, so that what is behind a norm counts as much as what passes it by.
    let weights = data.iter().map(|(name, var)| {
        let scale = if name.contains("norm") { 1. } else { 2. };
        Ok((name.clone(), (var.as_detached_tensor() * scale)?))
    });
    let weights = weights.collect::<fpdm_vae::Result<_>>()?;
    let codec = AutoencoderKl::from_tensors(KlConfig::stable_diffusion(), "random", weights, DType::F32, &Device::Cpu)?;
    let width = tile + (tiles.max(1) - 1) * (tile - overlap);
    let z = normal((1, 4, tile, width), &mut stream(0, Stream::Noise, 0), DType::F32, &Device::Cpu)?;
    // From a flat sky to a wood.
    let ramp = (Tensor::arange(0f32, width as f32, &Device::Cpu)? / width as f64)?;
    let z = z.broadcast_mul(&ramp.affine(0.9, 0.1)?)?.broadcast_add(&ramp.affine(2., -1.)?)?;
    let whole = codec.decode(&z)?;
    // As if the picture filled [-1, 1]: a standard deviation of a half.
    let deviation = whole.broadcast_sub(&whole.mean_all()?)?.sqr()?.mean_all()?.sqrt()?.to_scalar::<f32>()?;
    let show = |what: &str, codec: &dyn LatentCodec| -> fpdm_vae::Result<()> {
        let steps = 0.5 / deviation / (2. / 255.);
        let worst: Vec<f32> = by_distance(&codec.decode(&z)?, &whole, tiling)?.iter().map(|d| d * steps).collect();
        println!("{what}, largest difference by distance in steps of 8 bits: {worst:.2?}");
        Ok(())
    };
    show("separate tiles", &Tiled::new(Box::new(codec.clone()), tiling)?)?;
    for &passes in passes {
        show(&format!("{passes} passes"), &TiledKl::new(codec.clone(), tiling, passes)?)?;
    }
    Ok(())
}
