//! The commands as a user types them: images to latents, a few steps of training, samples, conversion.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};

/// `cargo test` builds the examples beside the tests.
fn example(name: &str) -> Result<Command> {
    let test = std::env::current_exe()?;
    let folder = test.ancestors().nth(2).context("target/PROFILE/deps/TEST")?.join("examples");
    let path = folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    ensure!(path.is_file(), "{} is not built; run `cargo test`, which builds it", path.display());
    let mut command = Command::new(path);
    command.env("HF_HUB_OFFLINE", "1").env("RUST_BACKTRACE", "0");
    Ok(command)
}

fn run(name: &str, arguments: &[&str]) -> Result<Output> {
    let output = example(name)?.args(arguments).output()?;
    ensure!(output.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

/// The error of a run that must fail.
fn fails(name: &str, arguments: &[&str]) -> Result<String> {
    let output = example(name)?.args(arguments).output()?;
    ensure!(!output.status.success(), "{name} {arguments:?} succeeded");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Eight pictures of 16×16.
fn pictures(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    for i in 0..8 {
        let wave = Tensor::arange(0f32, 3. * 16. * 16., &Device::Cpu)?.affine(0.05 * (i + 1) as f64, 0.)?.sin()?;
        let picture = fpdm_vae::image::from_tensor(&wave.reshape((1, 3, 16, 16))?.to_dtype(DType::F32)?)?;
        fpdm_vae::image::write_png(folder.join(format!("{i}.png")), &picture[0])?;
    }
    Ok(())
}

#[test]
fn from_images_to_samples() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    let (images, latents, model) = (at("images"), at("latents"), at("model"));
    pictures(&images)?;
    run("encode_dataset", &[text(&images), "--codec", "pixels", "--side", "16", "--out", text(&latents)])?;
    let (log, export) = (at("run"), text(&model));
    let train = [text(&latents), "--codec", "pixels", "--out", text(&log), "--size", "tiny", "--batch-size", "4"];
    run("train", &[&train[..], &["--steps", "2"]].concat())?;
    run("train", &[&train[..], &["--steps", "4", "--resume", "--export", export]].concat())?;
    let lines = std::fs::read_to_string(log.join("log.jsonl"))?;
    assert_eq!(lines.lines().count(), 4, "one line a step, across the resume");

    let sample = ["--weights", export, "--codec", "pixels", "--num", "2", "--steps", "3", "--budget", "12"];
    let (once, again) = (at("once"), at("again"));
    run("sample_ffhq", &[&sample[..], &["--out", text(&once)]].concat())?;
    for file in ["000000.png", "000001.png", "grid.png", "samples.json"] {
        assert!(once.join(file).is_file(), "{file}");
    }
    run("sample_ffhq", &["--from-image", text(&once.join("000001.png")), "--out", text(&again)])?;
    let repeated = std::fs::read(again.join("000001.png"))?;
    assert!(repeated == std::fs::read(once.join("000001.png"))?, "a repeated picture differs");

    let error = fails("sample_ffhq", &[&sample[..8], &["--budget", "2", "--out", text(&at("no"))]].concat())?;
    assert!(error.contains("budget") || error.contains("total"), "{error}");
    assert!(!at("no").join("000000.png").exists(), "an error before any work");

    let converted = at("converted").join("model.pt");
    run("convert", &[export, text(&converted), "--to", "published-pt"])?;
    assert!(converted.is_file() && converted.with_file_name("config.json").is_file());
    let error = fails("convert", &[export, text(&converted)])?;
    assert!(error.contains("--force"), "{error}");
    Ok(())
}

#[test]
fn from_images_to_a_codec() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    let images = at("images");
    pictures(&images)?;
    let tiny =
        ["--held-out", "2", "--side", "16", "--crop", "8", "--batch-size", "2", "--readers", "2", "--device", "cpu"];
    let small = ["--encoder-width", "8", "--encoder-blocks", "1,1", "--decoder-width", "12", "--decoder-blocks", "2,1"];
    let often = ["--log-every", "1", "--eval-every", "2", "--save-every", "2", "--warmup", "0"];
    let common = [&[text(&images)][..], &tiny, &small, &often].concat();
    let run_to = |out: &Path, more: &[&str]| run("train_codec", &[&common[..], &["--out", text(out)], more].concat());
    let log = |out: &Path| -> Result<Vec<serde_json::Value>> {
        let lines = std::fs::read_to_string(out.join("log.jsonl"))?;
        Ok(lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    };

    // A codec of its own: stopped and gone on with, it is the codec of a run that was not stopped.
    let weights = |codec: &Path| std::fs::read(codec.join("diffusion_pytorch_model.safetensors"));
    let losses = ["--laplacian-weight", "0.5", "--latent-noise", "0.1", "--decay", "constant"];
    let (whole, parts, own, again) = (at("whole"), at("parts"), at("own"), at("again"));
    run_to(&whole, &[&losses[..], &["--steps", "4", "--export", text(&own)]].concat())?;
    run_to(&parts, &[&losses[..], &["--steps", "2"]].concat())?;
    let error = fails("train_codec", &[&common[..], &losses, &["--out", text(&parts), "--steps", "4"]].concat())?;
    assert!(error.contains("--resume"), "{error}");
    run_to(&parts, &[&losses[..], &["--steps", "4", "--resume", "--export", text(&again)]].concat())?;
    assert!(weights(&own)? == weights(&again)?, "a run that goes on is another run");
    let lines = log(&parts)?;
    assert_eq!(lines.iter().filter(|line| line["loss"].is_f64()).count(), 4, "one line a step, across the resume");
    let last = lines.iter().rfind(|line| line["psnr"].is_f64()).context("no evaluation")?;
    assert!(last["held_out"] == 2 && last["gradient_ratio"].as_f64().is_some_and(|ratio| ratio > 0.), "{last}");
    assert!(parts.join("held_out.png").is_file());
    run(
        "reconstruct",
        &[text(&images.join("0.png")), "--codec", text(&own), "--size", "16", "--out", text(&at("a.png"))],
    )?;

    // A decoder for the latents of that codec, with its encoder or another one.
    let (decoder, both) = (at("decoder"), at("both"));
    let of = ["--latents-of", text(&own), "--steps", "2", "--export-dtype", "f32", "--texture-weight", "0"];
    run_to(&at("run-decoder"), &[&of[..], &["--export", text(&decoder)]].concat())?;
    run_to(&at("run-both"), &[&of[..], &["--train-encoder", "--seconds", "600", "--export", text(&both)]].concat())?;
    let tensor = |codec: &Path, name: &str| -> Result<Vec<f32>> {
        let tensors = candle_core::safetensors::load(codec.join("diffusion_pytorch_model.safetensors"), &Device::Cpu)?;
        Ok(tensors[name].to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    };
    let (encoder, first) = ("encoder.layers.0.weight", "decoder.layers.0.weight");
    assert_eq!(tensor(&decoder, encoder)?, tensor(&own, encoder)?);
    assert_ne!(tensor(&decoder, first)?, tensor(&own, first)?);
    assert_ne!(tensor(&both, encoder)?, tensor(&own, encoder)?);
    fpdm_vae::open(text(&both), DType::F32, &Device::Cpu)?;
    let odd: Vec<&str> = common.iter().map(|argument| if *argument == "8" { "7" } else { argument }).collect();
    let error = fails("train_codec", &[&odd[..], &["--out", text(&at("no"))]].concat())?;
    assert!(error.contains("--crop: 7 is no positive multiple of 2") && !at("no").exists(), "{error}");
    Ok(())
}

#[test]
fn a_main_command_without_weights_says_how_to_name_some() -> Result<()> {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/assets/model.safetensors");
    if !assets.exists() {
        let error = fails("sample_ffhq", &[])?;
        assert!(error.contains("--hub") && error.contains("--weights"), "{error}");
    }
    Ok(())
}
