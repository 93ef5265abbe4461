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

#[test]
fn samples_are_compared_with_data() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    let (data, samples, out) = (at("data"), at("samples"), at("out"));
    pictures(&data)?;
    std::fs::create_dir(&samples)?;
    // Two are copies of data; the sheet of the sampling commands is no sample.
    for (from, to) in [("2.png", "0.png"), ("5.png", "1.png"), ("0.png", "grid.png")] {
        std::fs::copy(data.join(from), samples.join(to))?;
    }
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/features");
    let weights = fixtures.join("efficientnet_lite0.safetensors");
    let (first, last) = (format!("{}#..6", text(&data)), format!("{}#6..", text(&data)));
    let arguments = [text(&samples), "--reference", &first, "--held-out", &last, "--weights", text(&weights)];
    let rest = ["--k", "1", "--subsets", "4", "--device", "cpu", "--out", text(&out)];
    run("evaluate", &[&arguments[..], &rest[..]].concat())?;
    let report =
        || -> Result<serde_json::Value> { Ok(serde_json::from_slice(&std::fs::read(out.join("evaluation.json"))?)?) };
    let once = report()?;
    assert_eq!(once["frechet_distance"]["name"], "FD (EfficientNet-Lite0)");
    assert_eq!(
        (&once["samples"]["count"], &once["reference"]["count"], &once["held_out"]["count"]),
        (&2.into(), &6.into(), &2.into())
    );
    assert_eq!((once["nearest_reference"]["1"].as_f64(), once["precision"].as_f64()), (Some(0.), Some(1.)), "{once}");
    assert!(once["held_out_against_reference"]["nearest_reference"]["0"].as_f64() > Some(0.));
    assert!(out.join("neighbours.png").is_file() && out.join("closest.png").is_file());

    // The second run reads what the first has kept; a changed picture is another set.
    let kept = || -> Result<usize> {
        let files = std::fs::read_dir(&out)?.collect::<std::io::Result<Vec<_>>>()?;
        Ok(files.iter().filter(|f| f.file_name().to_string_lossy().starts_with("features-")).count())
    };
    assert_eq!(kept()?, 3);
    run("evaluate", &[&arguments[..], &rest[..]].concat())?;
    assert_eq!((kept()?, report()?), (3, once.clone()));
    std::fs::copy(data.join("3.png"), samples.join("1.png"))?;
    run("evaluate", &[&arguments[..], &rest[..]].concat())?;
    assert_eq!(kept()?, 4);

    // The same pictures as latents of the codec that is the identity.
    let latents = at("latents.safetensors");
    let z = ["2.png", "3.png"].map(|name| -> Result<Tensor> {
        let picture = fpdm_vae::image::read(data.join(name), 1 << 20)?;
        Ok(fpdm_vae::image::to_tensor(&picture, DType::F32, &Device::Cpu)?)
    });
    let [a, b] = z;
    candle_core::safetensors::save(&[("latents", Tensor::cat(&[a?, b?], 0)?)].into(), &latents)?;
    let as_latents = [&[text(&latents), "--codec", "pixels"][..], &arguments[1..], &rest[..]].concat();
    let found = report()?["frechet_distance"]["value"].as_f64().context("a number")?;
    run("evaluate", &as_latents)?;
    let of_latents = report()?["frechet_distance"]["value"].as_f64().context("a number")?;
    assert!((of_latents - found).abs() < 1e-5 * found.max(1.), "{of_latents} for {found}");

    for (change, message) in [
        (["--reference", "nowhere"], "no such file or folder"),
        (["--reference", &format!("{}#7..99", text(&data))], "no part of 8 pictures"),
        (["--reference", &format!("{}#many", text(&data))], "no run of pictures"),
        (["--features", "inception"], "has no place in the network"),
        (["--subset-size", "1"], "--subset-size: 1"),
        (["--k", "2"], "`k`: 2"),
        (["--device", "abacus"], "none of auto, cpu, cuda, metal"),
    ] {
        let mut wrong: Vec<&str> = [&arguments[..], &rest[..]].concat();
        match wrong.iter().position(|argument| *argument == change[0]) {
            Some(place) => wrong[place + 1] = change[1],
            None => wrong.extend(change),
        }
        let error = fails("evaluate", &wrong)?;
        assert!(error.contains(message), "{change:?}: {error}");
    }
    let error = fails("evaluate", &[&[text(&latents)][..], &arguments[1..], &rest[..]].concat())?;
    assert!(error.contains("--codec"), "{error}");
    Ok(())
}
