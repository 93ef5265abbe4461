//! What every codec promises.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarMap;
use fpdm_vae::{
    AutoencoderKl, KlConfig, LatentCodec, Pixels, Result, Sliced, Tiled, Tiling, TinyAutoencoder, TinyConfig, fresh,
    open, open_bytes,
};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn codec(name: &str) -> Box<dyn LatentCodec> {
    open(folder(name).to_str().unwrap(), DType::F32, &Device::Cpu).unwrap()
}

fn largest(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

fn waves(shape: (usize, usize, usize, usize)) -> Tensor {
    let (b, c, h, w) = shape;
    let at = |i: usize| {
        let (x, y, k) = ((i % w) as f32, (i / w % h) as f32, (i / (w * h)) as f32);
        (x * 0.21 + k).sin() * 0.6 + (y * 0.17 - k).cos() * 0.4
    };
    Tensor::from_vec((0..b * c * h * w).map(at).collect::<Vec<f32>>(), shape, &Device::Cpu).unwrap()
}

#[test]
fn a_codec_opens_from_memory() -> Result<()> {
    for name in ["codec_kl", "codec_tiny"] {
        let config = std::fs::read_to_string(folder(name).join("config.json")).unwrap();
        let weights = std::fs::read(folder(name).join("diffusion_pytorch_model.safetensors")).unwrap();
        let opened = open_bytes("memory", &config, &weights, DType::F32, &Device::Cpu)?;
        let x = waves((1, 3, 16, 24));
        let z = codec(name).encode(&x)?.mean;
        assert_eq!(largest(&opened.encode(&x)?.mean, &z), 0.);
        assert_eq!(largest(&opened.decode(&z)?, &codec(name).decode(&z)?), 0.);
        let short = open_bytes("memory", &config, &weights[..100], DType::F32, &Device::Cpu);
        let error = short.err().expect("too short").to_string();
        assert!(error.starts_with("memory: no safetensors"), "{error}");
    }
    Ok(())
}

#[test]
fn slices_equal_the_whole() -> Result<()> {
    for name in ["codec_kl", "codec_tiny"] {
        let whole = codec(name);
        let sliced = Sliced::new(codec(name), 2)?;
        let x = waves((5, 3, 16, 24));
        let (a, b) = (whole.encode(&x)?, sliced.encode(&x)?);
        assert!(largest(&a.mean, &b.mean) < 1e-5 && largest(&a.std, &b.std) < 1e-5);
        assert!(largest(&whole.decode(&a.mean)?, &sliced.decode(&a.mean)?) < 1e-5);
    }
    Ok(())
}

#[test]
fn tiles_equal_the_whole_away_from_seams() -> Result<()> {
    let tiling = Tiling { tile: 16, overlap: 8, factor: 8 };
    let tiled = Tiled::new(codec("codec_tiny"), tiling)?;
    let z = waves((1, 16, 16, 40));
    let (whole, parts) = (codec("codec_tiny").decode(&z)?, tiled.decode(&z)?);
    // Tiles start at 0, 8, 16 and 24 latents, so every place is blended; a tile's edge has no weight there.
    let difference = largest(&whole, &parts);
    println!("tiled tiny: {difference:.4}");
    assert!(difference < 0.1);
    // Before the second tile starts, only the first one speaks.
    let left = |t: &Tensor| t.narrow(3, 0, 48).unwrap();
    assert!(largest(&left(&whole), &left(&parts)) < 2. / 255.);
    let x = waves((1, 3, 128, 320));
    assert_eq!(tiled.encode(&x)?.mean.dims(), [1, 16, 16, 40]);
    Ok(())
}

#[test]
fn tiles_of_pixels_are_exact() -> Result<()> {
    for (height, width, tile, overlap) in [(7, 9, 4, 2), (16, 3, 5, 0), (4, 4, 8, 3), (11, 30, 6, 3), (5, 5, 1, 0)] {
        let tiled = Tiled::new(Box::new(Pixels), Tiling { tile, overlap, factor: 1 })?;
        let x = waves((2, 3, height, width));
        assert!(largest(&tiled.decode(&x)?, &x) < 1e-6);
        assert!(largest(&tiled.encode(&x)?.mean, &x) < 1e-6);
    }
    Ok(())
}

#[test]
fn samples_follow_the_seed_and_not_the_batch() -> Result<()> {
    let text = std::fs::read_to_string(folder("codec_kl").join("config.json")).unwrap();
    let weights =
        candle_core::safetensors::load(folder("codec_kl").join("diffusion_pytorch_model.safetensors"), &Device::Cpu)?;
    let codec = AutoencoderKl::from_tensors(KlConfig::from_json(&text)?, "kl", weights, DType::F32, &Device::Cpu)?;
    let posterior = codec.posterior(&waves((2, 3, 16, 16)))?;
    let both = posterior.sample(3, &[10, 11])?;
    assert_eq!(largest(&both, &posterior.sample(3, &[10, 11])?), 0.);
    assert!(largest(&both, &posterior.sample(4, &[10, 11])?) > 0.);
    let second = codec.posterior(&waves((2, 3, 16, 16)).narrow(0, 1, 1)?)?.sample(3, &[11])?;
    assert!(largest(&both.narrow(0, 1, 1)?, &second) < 1e-5);
    assert!(posterior.sample(3, &[1]).unwrap_err().to_string().contains("one index a row"));
    Ok(())
}

/// As the original does, so that neither a deviation nor a density overflows.
#[test]
fn log_variances_are_clamped() -> Result<()> {
    let text = std::fs::read_to_string(folder("codec_kl").join("config.json")).unwrap();
    let path = folder("codec_kl").join("diffusion_pytorch_model.safetensors");
    let mut weights = candle_core::safetensors::load(path, &Device::Cpu)?;
    let bias = [0f32, 0., 0., 0., 100., -100., 90., -90.];
    weights.insert("quant_conv.bias".into(), Tensor::new(&bias, &Device::Cpu)?);
    let codec = AutoencoderKl::from_tensors(KlConfig::from_json(&text)?, "kl", weights, DType::F32, &Device::Cpu)?;
    let log_var = codec.posterior(&waves((1, 3, 16, 16)))?.log_var.mean((0, 2, 3))?.to_vec1::<f32>()?;
    assert_eq!(log_var, [20., -30., 20., -30.]);
    Ok(())
}

/// One step of plain descent lowers the loss, and every weight gets a gradient.
#[test]
fn a_tiny_autoencoder_learns() -> Result<()> {
    let vars = VarMap::new();
    let config = TinyConfig {
        encoder_block_out_channels: vec![8; 2],
        decoder_block_out_channels: vec![8; 2],
        num_encoder_blocks: vec![1, 1],
        num_decoder_blocks: vec![1, 1],
        ..TinyConfig::default()
    };
    let codec = TinyAutoencoder::new(config, fresh(&vars, 0, DType::F32, &Device::Cpu))?;
    // PyTorch's bound shrinks the signal at every ReLU until biases decide who lives; He's, √6 times wider, keeps it.
    for var in vars.all_vars().iter().filter(|var| var.rank() == 4) {
        var.set(&(var.as_detached_tensor() * 6f64.sqrt())?)?;
    }
    let x = waves((2, 3, 16, 16));
    let loss = || -> Result<Tensor> { Ok((codec.decode(&codec.encode(&x)?.mean)? - &x)?.sqr()?.mean_all()?) };
    let before = loss()?;
    let gradients = before.backward()?;
    for var in vars.all_vars() {
        let gradient = gradients.get(&var).expect("a gradient").detach();
        assert!(gradient.abs()?.max_all()?.to_scalar::<f32>()? > 0.);
        var.set(&(var.as_detached_tensor() - (gradient * 0.05)?)?)?;
    }
    assert!(loss()?.to_scalar::<f32>()? < before.to_scalar::<f32>()?);
    Ok(())
}

#[test]
fn bad_input_is_named() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    for name in ["codec_kl", "codec_tiny"] {
        let codec = codec(name);
        for shape in
            [&[1, 3, 17, 16][..], &[1, 4, 16, 16], &[1, 1, 16, 16], &[0, 3, 16, 16], &[1, 3, 0, 16], &[3, 16, 16]]
        {
            let message = codec.encode(&zeros(shape)).unwrap_err().to_string();
            assert!(message.contains("encode: pixels: expected (B, 3, H, W)"), "{message}");
        }
        let message = codec.decode(&zeros(&[1, 5, 4, 4])).unwrap_err().to_string();
        assert!(message.contains("decode: latents: expected (B,"), "{message}");
        let bytes = Tensor::zeros((1, 3, 16, 16), DType::U8, &Device::Cpu).unwrap();
        assert!(codec.encode(&bytes).unwrap_err().to_string().contains("floating point"));
    }
    assert!(Sliced::new(Box::new(Pixels), 0).is_err());
    assert!(Tiled::new(Box::new(Pixels), Tiling { tile: 4, overlap: 3, factor: 1 }).is_err());
    let wrong = Tiled::new(Box::new(Pixels), Tiling { tile: 4, overlap: 1, factor: 8 }).unwrap();
    assert!(wrong.decode(&zeros(&[1, 3, 8, 8])).unwrap_err().to_string().contains("give the codec's own"));
}
