//! Pictures in tiles against pictures as a whole.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use fpdm_core::rng::{Stream, normal, stream};
use fpdm_vae::{AutoencoderKl, KlConfig, LatentCodec, Result, Tiled, TiledKl, Tiling, open, open_tiled};

const CPU: Device = Device::Cpu;

/// One step of 8 bits, of the range [-1, 1].
const STEP: f32 = 2. / 255.;

fn folder(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    path.to_str().unwrap().to_owned()
}

fn kl() -> Result<AutoencoderKl> {
    let folder = folder("codec_kl");
    let config = KlConfig::from_json(&std::fs::read_to_string(format!("{folder}/config.json")).unwrap())?;
    let weights = candle_core::safetensors::load(format!("{folder}/diffusion_pytorch_model.safetensors"), &CPU)?;
    AutoencoderKl::from_tensors(config, &folder, weights, DType::F32, &CPU)
}

/// Latents whose statistics differ from left to right, as a sky's from a wood's.
fn latents(channels: usize, height: usize, width: usize) -> Result<Tensor> {
    let noise = normal((1, channels, height, width), &mut stream(1, Stream::Noise, 0), DType::F32, &CPU)?;
    let ramp = (Tensor::arange(0f32, width as f32, &CPU)? / width as f64)?;
    Ok(noise.broadcast_mul(&ramp.affine(0.9, 0.1)?)?.broadcast_add(&ramp.affine(2., -1.)?)?)
}

/// The largest difference for each distance from the nearest column that tiles share, in latents; 0 is such a column.
fn by_distance(a: &Tensor, b: &Tensor, tiling: Tiling, width: usize) -> Result<Vec<f32>> {
    assert_eq!(a.dims(), b.dims());
    let columns = (a - b)?.abs()?.flatten_to(2)?.max(0)?.to_vec1::<f32>()?;
    let Tiling { tile, overlap, factor } = tiling;
    let starts: Vec<usize> = (0..width - tile).step_by(tile - overlap).chain([width - tile]).collect();
    let shared = |column: usize| starts.windows(2).any(|s| (s[1]..s[0] + tile).contains(&column));
    let shared: Vec<usize> = (0..width).filter(|c| shared(*c)).collect();
    let mut worst = Vec::new();
    for (pixel, &difference) in columns.iter().enumerate() {
        let column = pixel / factor;
        let distance = shared.iter().map(|s| s.abs_diff(column)).min().unwrap();
        worst.resize(worst.len().max(distance + 1), 0f32);
        worst[distance] = worst[distance].max(difference);
    }
    Ok(worst)
}

/// The largest difference two or more latents away from what tiles share.
fn away(by_distance: &[f32]) -> f32 {
    by_distance[2..].iter().copied().fold(0., f32::max)
}

#[test]
fn a_kl_in_tiles_keeps_its_colours() -> Result<()> {
    let tiling = Tiling { tile: 24, overlap: 8, factor: 4 };
    let z = latents(4, 24, 72)?;
    let whole = kl()?.decode(&z)?;
    let measured = |codec: &dyn LatentCodec| -> Result<f32> {
        let worst = by_distance(&codec.decode(&z)?, &whole, tiling, 72)?;
        println!("{worst:.4?}");
        Ok(away(&worst))
    };
    let separate = measured(&Tiled::new(Box::new(kl()?), tiling)?)?;
    let sampled = measured(&TiledKl::new(kl()?, tiling, 0)?)?;
    let passed = measured(&TiledKl::new(kl()?, tiling, 4)?)?;
    assert!(sampled < separate / 5., "a sample's statistics: {sampled}, each tile's own: {separate}");
    assert!(passed < STEP / 2., "{passed}");
    Ok(())
}

#[test]
fn a_kl_encodes_in_tiles() -> Result<()> {
    let tiling = Tiling { tile: 16, overlap: 8, factor: 4 };
    // Two tiles down and three across.
    let x = latents(3, 96, 120)?.tanh()?;
    let whole = kl()?.encode(&x)?;
    let norm = |t: &Tensor| -> Result<f32> { Ok(t.sqr()?.sum_all()?.sqrt()?.to_scalar()?) };
    let error = |codec: &dyn LatentCodec| -> Result<f32> {
        let parts = codec.encode(&x)?;
        let [mean, std] = [(&whole.mean, &parts.mean), (&whole.std, &parts.std)].map(|(a, b)| -> Result<f32> {
            assert_eq!(a.dims(), b.dims());
            Ok(norm(&(a - b)?)? / norm(a)?)
        });
        Ok(mean?.max(std?))
    };
    // Everywhere, seams included, which attention carries to all latents.
    let (separate, ours) = (error(&Tiled::new(Box::new(kl()?), tiling)?)?, error(&TiledKl::new(kl()?, tiling, 3)?)?);
    println!("encoded in separate tiles {separate:.1e}, in ours {ours:.1e}");
    assert!(ours < separate / 4. && ours < 0.05, "{ours}");
    // One tile is the whole.
    let small = x.narrow(2, 0, 64)?.narrow(3, 0, 60)?;
    let codec = TiledKl::new(kl()?, tiling, 1)?;
    let (a, b) = (kl()?.encode(&small)?.mean, codec.encode(&small)?.mean);
    assert_eq!(a.flatten_all()?.to_vec1::<f32>()?, b.flatten_all()?.to_vec1::<f32>()?);
    let (a, b) = (kl()?.decode(&a)?, codec.decode(&b)?);
    assert_eq!(a.flatten_all()?.to_vec1::<f32>()?, b.flatten_all()?.to_vec1::<f32>()?);
    Ok(())
}

#[test]
fn a_codec_without_norms_is_the_same_in_tiles() -> Result<()> {
    let tiling = Tiling { tile: 16, overlap: 4, factor: 8 };
    let z = latents(16, 16, 40)?;
    let tiled = open_tiled(&folder("codec_tiny"), tiling.tile, tiling.overlap, DType::F32, &CPU)?;
    let worst =
        by_distance(&tiled.decode(&z)?, &open(&folder("codec_tiny"), DType::F32, &CPU)?.decode(&z)?, tiling, 40)?;
    println!("{worst:.5?}");
    assert!(worst[0] < 2. * STEP && away(&worst) < STEP / 20., "{worst:?}");
    Ok(())
}

#[test]
fn tiles_that_cannot_be_are_named() -> Result<()> {
    let message = |tiling| TiledKl::new(kl().unwrap(), tiling, 1).err().unwrap().to_string();
    assert!(message(Tiling { tile: 8, overlap: 2, factor: 8 }).contains("the codec's own is 4"));
    assert!(message(Tiling { tile: 8, overlap: 5, factor: 4 }).contains("at most half"));
    assert!(open_tiled("pixels", 0, 0, DType::F32, &CPU).err().unwrap().to_string().contains("tile"));
    let codec = TiledKl::new(kl()?, Tiling { tile: 8, overlap: 2, factor: 4 }, 1)?;
    let odd = Tensor::zeros((1, 3, 66, 64), DType::F32, &CPU)?;
    assert!(codec.encode(&odd).unwrap_err().to_string().contains("multiples of 4"));
    assert!(codec.decode(&odd).unwrap_err().to_string().contains("(B, 4, H, W)"));
    Ok(())
}

/// `FPDM_TAESD_DIR` and `FPDM_PARITY_DIR` as in `vae_parity`.
#[test]
fn taesd_in_tiles() -> Result<()> {
    let (Ok(taesd), Ok(parity)) = (std::env::var("FPDM_TAESD_DIR"), std::env::var("FPDM_PARITY_DIR")) else {
        println!("skipped: FPDM_TAESD_DIR and FPDM_PARITY_DIR are not set");
        return Ok(());
    };
    let photographs = candle_core::safetensors::load(format!("{parity}/taesd_expected.safetensors"), &CPU)?;
    // One picture of three, and one tile high.
    let parts: Vec<_> = (0..3).map(|i| photographs["image"].narrow(0, i, 1)).collect::<candle_core::Result<_>>()?;
    let codec = open(&taesd, DType::F32, &CPU)?;
    let z = codec.encode(&Tensor::cat(&parts, 3)?)?.mean;
    for overlap in [4, 8, 12] {
        let tiling = Tiling { tile: 32, overlap, factor: 8 };
        let tiled = open_tiled(&taesd, tiling.tile, tiling.overlap, DType::F32, &CPU)?;
        let worst = by_distance(&tiled.decode(&z)?, &codec.decode(&z)?, tiling, z.dim(3)?)?;
        println!("TAESD, tiles that share {overlap}: {worst:.4?}");
        // What a latent tells is seen up to ten latents away.
        assert!(worst[11.min(worst.len() - 1)..].iter().all(|difference| *difference < STEP), "{worst:?}");
    }
    Ok(())
}
