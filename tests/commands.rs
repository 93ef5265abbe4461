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
fn training_takes_every_estimator_source_and_network() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    let images = at("images");
    pictures(&images)?;
    let run_to = |out: &str, sources: &[&str], more: &[&str]| -> Result<String> {
        let out = at(out);
        let common = ["--out", text(&out), "--size", "tiny", "--batch-size", "2", "--steps", "1", "--device", "cpu"];
        let output = run("train", &[sources, &common, more].concat())?;
        assert!(out.join("checkpoints/step-0000000001/state.json").is_file());
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let pixels = [text(&images), "--codec", "pixels", "--side", "8"];
    for (i, estimator) in ["jfb", "multistep", "phantom", "implicit", "unrolled"].into_iter().enumerate() {
        run_to(estimator, &pixels, &["--estimator", estimator, "--solver", ["picard", "anderson", "broyden"][i % 3]])?;
    }
    let options = ["--supervise", "0.8", "--jacobian", "1", "--consistency", "0.1", "--recompute", "2"];
    run_to("options", &pixels, &options)?;

    // A broken file beside eight whole ones; the settings of a flow without labels; a DiT on the same data.
    std::fs::write(images.join("x.png"), b"no picture")?;
    let refused =
        fails("train", &[&pixels[..], &["--out", text(&at("no")), "--batch-size", "9", "--size", "tiny"]].concat())?;
    assert!(refused.contains("x.png"), "{refused}");
    let face = [
        &["--skip", "0.2", "--condition-pre-post", "--prediction", "flow", "--times", "logit-normal"][..],
        &["--normalise", "std", "--betas", "0.9,0.99", "--ema", "0.9,0.99", "--max-grad-norm", "2", "--pre", "2"],
        &["--group", "2", "--post", "0", "--batch-size", "9", "--data-threads", "2", "--log-every", "10"],
    ]
    .concat();
    let model = at("model");
    let face = [&face[..], &["--export", text(&model)]].concat();
    let train = |more: &[&str]| run("train", &[&pixels[..], more].concat());
    let out = at("face");
    let output = train(&[&face[..], &["--out", text(&out), "--size", "tiny", "--steps", "3"]].concat())?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("left out: x.png") && told.contains("latents are (x − [0.0]) / ["), "{told}");
    let log = std::fs::read_to_string(out.join("log.jsonl"))?;
    assert!(log.lines().count() == 1 && log.contains("\"steps\":3"), "{log}");
    let config = std::fs::read_to_string(model.join("config.json"))?;
    assert!(config.contains("\"labels\": \"none\"") && config.contains("\"learn_sigma\": false"), "{config}");
    let dit = ["--architecture", "dit", "--depth", "2", "--no-learned-variance", "--seconds", "0.001", "--steps", "50"];
    let out = at("dit");
    let export = ["--out", text(&out), "--size", "tiny", "--skip", "0.2", "--export", text(&model)];
    let output = train(&[&dit[..], &export].concat())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("step 1 after"), "the time is up after one step: {said}");
    assert!(std::fs::read_to_string(model.join("README.md"))?.contains("A diffusion transformer"));

    let (features, labels) = (at("features"), at("labels"));
    for folder in [&features, &labels] {
        std::fs::create_dir(folder)?;
    }
    for i in 0..3u32 {
        let name = format!("{i}.npy");
        Tensor::full(i as f32, (1, 4, 8, 8), &Device::Cpu)?.write_npy(features.join(&name))?;
        Tensor::new(&[i64::from(i)], &Device::Cpu)?.write_npy(labels.join(&name))?;
    }
    run_to("npy", &[text(&features), "--labels", text(&labels), "--classes", "3"], &[])?;
    let error =
        fails("train", &[text(&features), "--labels", text(&labels), "--classes", "2", "--out", text(&at("bad"))])?;
    assert!(error.contains("class 2"), "{error}");
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
