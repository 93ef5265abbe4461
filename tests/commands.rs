//! The commands as a user types them: images to latents, a few steps of training, samples, conversion.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use fpdm_core::checkpoint::write_text;
use fpdm_core::dit::{Architecture, Config, Labels, Size, init, perturb_gates};
use fpdm_core::{CodecId, Diffusion, Normalisation, Parameterization, Recommended, params};
use serde_json::{Value, json};

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
    // The index says what the latents were encoded with.
    let train = [text(&latents), "--out", text(&log), "--size", "tiny", "--batch-size", "4"];
    run("train", &[&train[..], &["--steps", "2"]].concat())?;
    run("train", &[&train[..], &["--steps", "4", "--resume", "--export", export]].concat())?;
    let lines = std::fs::read_to_string(log.join("log.jsonl"))?;
    assert_eq!(lines.lines().count(), 4, "one line a step, across the resume");

    let said = Diffusion::from_json(&std::fs::read_to_string(model.join("diffusion.json"))?)?;
    assert_eq!((said.prediction, &*said.schedule.to_string()), (Parameterization::V, "zero-snr"));
    assert_eq!(said.codec, Some(CodecId { id: "pixels".into(), factor: Some(1) }));
    assert!(said.learned_variance && said.data.as_deref() == Some("images"));

    // The export says the rest.
    let sample = ["--weights", export, "--num", "2", "--steps", "3", "--budget", "12"];
    let (once, again) = (at("once"), at("again"));
    run("sample_ffhq", &[&sample[..], &["--out", text(&once)]].concat())?;
    for file in ["000000.png", "000001.png", "grid.png", "samples.json"] {
        assert!(once.join(file).is_file(), "{file}");
    }
    run("sample_ffhq", &["--from-image", text(&once.join("000001.png")), "--out", text(&again)])?;
    let repeated = std::fs::read(again.join("000001.png"))?;
    assert!(repeated == std::fs::read(once.join("000001.png"))?, "a repeated picture differs");

    let error = fails("sample_ffhq", &[&sample[..6], &["--budget", "2", "--out", text(&at("no"))]].concat())?;
    assert!(error.contains("budget") || error.contains("total"), "{error}");
    assert!(!at("no").join("000000.png").exists(), "an error before any work");

    let converted = at("converted").join("model.pt");
    run("convert", &[export, text(&converted), "--to", "published-pt"])?;
    assert!(converted.is_file() && converted.with_file_name("config.json").is_file());
    let carried = std::fs::read_to_string(converted.with_file_name("diffusion.json"))?;
    assert_eq!(Diffusion::from_json(&carried)?, said);
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
fn an_export_says_how_its_latents_were_normalised() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    let (images, latents) = (at("images"), at("latents"));
    pictures(&images)?;
    run("encode_dataset", &[text(&images), "--codec", "pixels", "--side", "8", "--out", text(&latents)])?;
    let flow = ["--prediction", "flow", "--times", "logit-normal"];
    let train = |name: &str, more: &[&str]| -> Result<Diffusion> {
        let (model, out) = (at(name), at(&format!("run-{name}")));
        let common = ["--codec", "pixels", "--size", "tiny", "--batch-size", "4", "--steps", "2", "--ema", "0.5"];
        let places = ["--out", text(&out), "--export", text(&model)];
        run("train", &[&[text(&latents)][..], &common, &places, &flow, more].concat())?;
        Ok(Diffusion::from_json(&std::fs::read_to_string(model.join(Diffusion::FILE))?)?)
    };
    let said = train("fpdm", &["--normalise", "std", "--condition-pre-post"])?;
    assert_eq!((said.prediction, &*said.schedule.to_string()), (Parameterization::Flow, "flow"));
    assert!(!said.learned_variance && said.data.as_deref() == Some("images"), "{said:?}");
    let std = said.latents.std[0];
    assert!(said.latents.mean == [0.] && said.latents.std.len() == 1 && std > 0.2 && std < 0.9, "{:?}", said.latents);
    let channels = train("dit", &["--normalise", "channels", "--architecture", "dit", "--depth", "2"])?;
    assert!(channels.latents.mean.len() == 3 && channels.latents.std.len() == 3, "{:?}", channels.latents);
    assert_eq!(channels.recommended.budget, None);

    // What is not said anywhere is in the export: the pictures are those of the network's latents, scaled back.
    let draw = |weights: &Path, out: &str| -> Result<Vec<u8>> {
        run("sample_ffhq", &["--weights", text(weights), "--out", text(&at(out))])?;
        pixels(&at(out).join("000003.png"))
    };
    let plain = at("plain");
    std::fs::create_dir(&plain)?;
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(at("fpdm").join(file), plain.join(file))?;
    }
    let unscaled = Diffusion { latents: Normalisation::default(), ..said.clone() };
    write_text(plain.join(Diffusion::FILE), &unscaled.to_json())?;
    let (scaled, raw) = (draw(&at("fpdm"), "scaled")?, draw(&plain, "raw")?);
    let mut seen = 0;
    for (scaled, raw) in scaled.iter().zip(&raw).filter(|(_, raw)| (1..255).contains(*raw)) {
        let expected = (f64::from(*raw) - 127.5) * std + 127.5;
        assert!((f64::from(*scaled) - expected).abs() <= 1.01, "{scaled} where {raw} was divided by {std}");
        seen += 1;
    }
    assert!(seen > 50 && scaled != raw, "{seen} pixels");
    let settings = account(&at("scaled"))?["settings"].clone();
    assert_eq!((&settings["sampler"], &settings["steps"]), (&json!("euler"), &json!(60)));

    // A stack's too, for each channel; `sweep` compares latents as they are.
    run("sample_ffhq", &["--weights", text(&at("dit")), "--num", "1", "--out", text(&at("stack"))])?;
    assert_eq!(account(&at("stack"))?["settings"]["latent_std"], json!(channels.latents.std));
    let more = ["--budgets", "2each", "--steps", "3", "--num", "1", "--out"];
    run("sweep", &[&["--weights", text(&at("fpdm"))], &more[..], &[text(&at("sweep"))]].concat())?;
    Ok(())
}

/// A network on 8×8 pixels.
fn small(labels: Labels) -> Config {
    Config { input_size: [8, 8], in_channels: 3, hidden_size: 32, num_heads: 2, labels, ..Config::fpdm(Size::S, 2) }
}

/// A folder with random weights, and what it says of their training.
fn save(folder: &Path, config: &Config, diffusion: Option<&Diffusion>) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let weights = init(config, 3, DType::F32, &Device::Cpu)?;
    perturb_gates(config, &weights, 4, 0.1)?;
    params::save(&weights, folder.join("model.safetensors"))?;
    write_text(folder.join("config.json"), &config.to_json())?;
    if let Some(diffusion) = diffusion {
        write_text(folder.join(Diffusion::FILE), &diffusion.to_json())?;
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

fn random(folder: &Path, labels: Labels, diffusion: Option<&Diffusion>) -> Result<()> {
    save(folder, &small(labels), diffusion)
}

/// The account of a run.
fn account(out: &Path) -> Result<Value> {
    Ok(serde_json::from_str(&std::fs::read_to_string(out.join("samples.json"))?)?)
}

/// Pixels of a picture.
fn pixels(path: &Path) -> Result<Vec<u8>> {
    Ok(image::open(path)?.to_rgb8().into_raw())
}

#[test]
fn weights_say_what_they_were_trained_for() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (model, out) = (folder.path().join("model"), folder.path().join("out"));
    let mut diffusion = Diffusion {
        codec: Some(CodecId { id: "pixels".into(), factor: Some(1) }),
        latents: Normalisation { mean: vec![0.1, 0., -0.1], std: vec![0.3333333333333333] },
        recommended: Recommended {
            sampler: Some("euler".into()),
            spacing: Some("trailing".into()),
            steps: Some(5),
            budget: Some("2each".into()),
            reuse: Some("fresh".into()),
            ..Default::default()
        },
        ..Diffusion::new(Parameterization::Flow, "flow".parse()?)
    };
    random(&model, Labels::Classes(1), Some(&diffusion))?;
    let weights = ["--weights", text(&model), "--num", "1"];
    let draw = |more: &[&str], out: &Path| run("sample_ffhq", &[&weights, more, &["--out", text(out)]].concat());
    draw(&[], &out)?;
    let said = account(&out)?;
    let settings = &said["settings"];
    assert_eq!((&settings["prediction"], &settings["sampler"]), (&json!("flow"), &json!("euler")));
    assert_eq!((&settings["spacing"], &settings["reuse"]), (&json!("trailing"), &json!("fresh")));
    assert_eq!(
        (&said["pictures"][0]["cost"]["solves"], &said["pictures"][0]["cost"]["applications"]),
        (&json!(5), &json!(10))
    );

    // Advice gives way to flags; facts do not.
    let other = folder.path().join("other");
    draw(&["--steps", "4", "--reuse", "reuse", "--prediction", "flow"], &other)?;
    assert_eq!(account(&other)?["pictures"][0]["cost"]["solves"], json!(4));
    for (flags, words) in [
        (["--prediction", "v"], ["v contradicts", "says flow"]),
        (["--schedule", "linear"], ["linear contradicts", "says flow"]),
        (["--latent-std", "1"], ["1 contradicts", "0.333"]),
        (["--latent-mean", "0,0,0"], ["0,0,0 contradicts", "0.1,0,-0.1"]),
    ] {
        let error = fails("sample_ffhq", &[&weights[..], &flags, &["--out", text(&other)]].concat())?;
        assert!(words.iter().all(|word| error.contains(word)), "{flags:?}: {error}");
    }

    // A picture is repeated although its numbers were written and read again.
    let again = folder.path().join("again");
    run("sample_ffhq", &["--from-image", text(&out.join("000000.png")), "--out", text(&again)])?;
    assert!(std::fs::read(out.join("000000.png"))? == std::fs::read(again.join("000000.png"))?);

    // The latents' scale reaches the picture, and the codec's factor is checked.
    diffusion.latents = Normalisation::default();
    write_text(model.join(Diffusion::FILE), &diffusion.to_json())?;
    draw(&[], &other)?;
    assert_ne!(pixels(&out.join("000000.png"))?, pixels(&other.join("000000.png"))?);
    diffusion.codec = Some(CodecId { id: "org/vae".into(), factor: Some(8) });
    write_text(model.join(Diffusion::FILE), &diffusion.to_json())?;
    let error = fails("sample_ffhq", &[&weights[..], &["--codec", "pixels", "--out", text(&other)]].concat())?;
    assert!(error.contains("org/vae") && error.contains('8'), "{error}");

    // The network has an output for a variance, but has not learned one.
    let circle = Diffusion::new(Parameterization::V, "zero-snr".parse()?);
    write_text(model.join(Diffusion::FILE), &circle.to_json())?;
    let error = fails("sample_ffhq", &[&weights[..], &["--sampler", "ddpm", "--out", text(&other)]].concat())?;
    assert!(error.contains("variance") && error.contains("ddpm:small"), "{error}");

    // A mistake in the file is named.
    write_text(model.join(Diffusion::FILE), &diffusion.to_json().replace("\"steps\": 5", "\"step\": 5"))?;
    let error = fails("sample_ffhq", &[&weights[..], &["--out", text(&other)]].concat())?;
    assert!(error.contains("diffusion.json") && error.contains("`step`"), "{error}");
    Ok(())
}

#[test]
fn every_flag_is_taken() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (model, table) = (folder.path().join("model"), folder.path().join("table.txt"));
    let said = Diffusion { learned_variance: true, ..Diffusion::new(Parameterization::V, "zero-snr".parse()?) };
    random(&model, Labels::Classes(4), Some(&said))?;
    let plain = folder.path().join("plain");
    random(&plain, Labels::Classes(4), None)?;
    std::fs::write(&table, "0 1\n1 3\n")?;
    let table = format!("table:{}", text(&table));
    // Each is tried alone, and all pictures differ from the first.
    let flags: &[&[&str]] = &[
        &[],
        &["--sampler", "ddpm"],
        &["--sampler", "ddpm:large"],
        &["--sampler", "ddim:0.5"],
        &["--sampler", "dpmpp2m"],
        &["--sampler", "unipc2", "--spacing", "trailing"],
        &["--sampler", "heun"],
        &["--spacing", "leading"],
        &["--steps", "5"],
        &["--budget", "30"],
        &["--budget", "30applications"],
        &["--budget", "2each"],
        &["--allocation", "early"],
        &["--allocation", "geometric:1:4"],
        &["--allocation", &table],
        &["--allocation", "adaptive"],
        &["--allocation", "adaptive:0.05", "--solver", "anderson:2"],
        &["--solver", "picard:0.5"],
        &["--solver", "broyden"],
        &["--reuse", "fresh"],
        &["--reuse", "blend:0.3"],
        &["--reuse", "extrapolate"],
        &["--guidance", "3"],
        &["--guidance", "3", "--guided-channels", "2"],
        &["--guidance", "3", "--guidance-interval", "0.3", "0.9"],
        &["--guidance", "3", "--unconditional-share", "0.5"],
        &["--iteration-guidance", "1.5"],
        &["--iteration-guidance", "1.5", "--iteration-guidance-early", "2"],
        &["--dtype", "f16"],
        &["--dtype", "bf16"],
        &["--seed", "7"],
        &["--label", "1"],
        &["--prediction", "eps", "--schedule", "linear"],
        &["--prediction", "x0", "--schedule", "cosine"],
        &["--prediction", "flow", "--schedule", "flow", "--sampler", "flow-heun"],
        &["--prediction", "flow", "--schedule", "flow", "--sampler", "flow-euler"],
        &["--latent-std", "0.5"],
        &["--latent-mean", "0.5,0,0"],
    ];
    let mut first = None;
    for (i, more) in flags.iter().enumerate() {
        let out = folder.path().join(format!("out-{i}"));
        // Facts of training can be said where no file says them.
        let model = if more.iter().any(|f| f.starts_with("--prediction") || f.starts_with("--latent")) {
            &plain
        } else {
            &model
        };
        let label: &[&str] = if more.contains(&"--label") { &[] } else { &["--label", "0"] };
        let common = ["--weights", text(model), "--steps", "4", "--num", "2", "--out", text(&out)];
        // The last of a flag counts.
        let common = if more.contains(&"--steps") { [&common[..2], &common[4..]].concat() } else { common.to_vec() };
        run("sample", &[&common[..], label, more].concat()).with_context(|| format!("{more:?}"))?;
        let picture = pixels(&out.join("000001.png"))?;
        match &first {
            None => first = Some(picture),
            Some(first) => assert_ne!(&picture, first, "{more:?} changes nothing"),
        }
        if i % 5 == 0 {
            let again = folder.path().join(format!("again-{i}"));
            run("sample", &["--from-image", text(&out.join("000001.png")), "--out", text(&again)])?;
            let same = std::fs::read(again.join("000001.png"))? == std::fs::read(out.join("000001.png"))?;
            assert!(same, "{more:?}: a repeated picture differs");
        }
    }

    // These change no picture.
    let first = first.context("one picture")?;
    let common = ["--weights", text(&model), "--steps", "4", "--num", "2", "--label", "0"];
    for more in [
        &["--batch", "1"][..],
        &["--device", "cpu", "--preview"],
        &["--preview", "2"],
        &["--first", "1"],
        &["--codec", "pixels"],
    ] {
        let out = folder.path().join("same");
        run("sample", &[&common[..], more, &["--out", text(&out)]].concat())?;
        assert_eq!(pixels(&out.join("000001.png"))?, first, "{more:?}");
        assert_eq!(out.join("preview.png").is_file(), more.contains(&"--preview"), "{more:?}");
        std::fs::remove_dir_all(&out)?;
    }
    assert!(String::from_utf8(run("sample", &["--list-labels"])?.stdout)?.contains("golden retriever"));
    Ok(())
}

#[test]
fn bad_input_is_refused_before_any_work() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (model, out) = (folder.path().join("model"), folder.path().join("out"));
    random(&model, Labels::Classes(4), None)?;
    let file = folder.path().join("file");
    std::fs::write(&file, "not a folder")?;
    let cases: &[(&[&str], &[&str])] = &[
        (&["--budget", "59"], &["budget", "59", "60"]),
        (&["--budget", "ten"], &["--budget", "ten"]),
        (&["--budget", "30spoons"], &["--budget", "spoons", "each"]),
        (&["--steps", "0"], &["steps", "0", "1"]),
        (&["--steps", "1001"], &["steps", "1001", "1000"]),
        (&["--sampler", "flow-heun"], &["--sampler", "flow-heun", "heun"]),
        (&["--sampler", "dpm"], &["--sampler", "`dpm`", "dpmpp2m"]),
        (&["--prediction", "eps"], &["eps", "v"]),
        (&["--prediction", "flow", "--schedule", "flow", "--sampler", "ddpm"], &["schedule"]),
        (&["--codec", "madebyollin/none"], &["--codec", "madebyollin/none"]),
        (&["--schedule", "sigmoid"], &["--schedule", "sigmoid", "zero-snr"]),
        (&["--latent-std", "0"], &["std", "0"]),
        (&["--latent-std", "1,2"], &["std", "2 numbers", "3"]),
        (&["--device", "cuda"], &["--device cuda"]),
        (&["--device", "tpu"], &["--device", "tpu", "cpu"]),
        (&["--dtype", "f8"], &["--dtype", "f8", "f16"]),
        (&["--num", "0"], &["--num", "1"]),
        (&["--batch", "0"], &["--batch", "1"]),
        (&["--preview", "0"], &["--preview", "1"]),
        (&["--label", "4"], &["--label", "4", "3"]),
        (&["--label", "cat"], &["--label", "cat", "number"]),
        (&["--label-file", text(&file)], &["--label-file", ".npy"]),
        (&["--guidance", "nan"], &["guidance"]),
        (&["--guidance", "2", "--guided-channels", "4"], &["guided channels", "4", "3"]),
        (&["--guidance", "2", "--guidance-interval", "0.9", "0.1"], &["interval"]),
        (&["--unconditional-share", "0", "--guidance", "2"], &["share", "0"]),
        (&["--iteration-guidance", "2", "--iteration-guidance-early", "0"], &["--iteration-guidance", "1 or more"]),
        (&["--allocation", "sideways"], &["--allocation", "sideways", "uniform"]),
        (&["--allocation", "table:none.txt"], &["none.txt"]),
        (&["--allocation", "adaptive:0"], &["--allocation", "0"]),
        (&["--solver", "newton"], &["--solver", "newton", "anderson"]),
        (&["--solver", "picard:1"], &["--solver", "1"]),
        (&["--reuse", "blend:2"], &["reuse", "2"]),
        (&["--from-image", text(&file)], &["--from-image", "PNG"]),
        (&["--hub", "org/name"], &["--hub", "--weights"]),
    ];
    for (flags, words) in cases {
        let error = fails("sample", &[&["--weights", text(&model), "--out", text(&out)], *flags].concat())?;
        assert!(words.iter().all(|word| error.contains(word)), "{flags:?}: {error}");
        let pictures = out.is_dir() && std::fs::read_dir(&out)?.next().is_some();
        assert!(!pictures, "{flags:?}: something was written");
    }
    let error = fails("sample", &["--weights", text(&model), "--out", text(&file)])?;
    assert!(error.contains("--out") && error.contains("folder"), "{error}");
    let error = fails("sample", &["--weights", text(&out.join("none")), "--out", text(&out)])?;
    assert!(error.contains("none") && error.contains("org/name"), "{error}");
    let error = fails("sweep", &["--weights", text(&model), "--budget", "80", "--out", text(&out)])?;
    assert!(error.contains("--budgets"), "{error}");
    Ok(())
}

#[test]
fn weights_are_taken_from_the_hub_at_a_revision() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (cache, out) = (folder.path().join("cache"), folder.path().join("out"));
    let repo = cache.join("models--org--name");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let said = Diffusion {
        recommended: Recommended { steps: Some(3), ..Default::default() },
        ..Diffusion::new(Parameterization::X0, "cosine".parse()?)
    };
    random(&repo.join("snapshots").join(commit), Labels::Classes(1), Some(&said))?;
    std::fs::create_dir_all(repo.join("refs"))?;
    std::fs::write(repo.join("refs/v1"), commit)?;
    let draw = |revision: &str| -> Result<Output> {
        let flags = ["--hub", "org/name", "--revision", revision, "--num", "1", "--out", text(&out)];
        Ok(example("sample_ffhq")?.args(flags).env("HF_HUB_CACHE", &cache).output()?)
    };
    for revision in ["v1", commit] {
        let output = draw(revision)?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let settings = account(&out)?["settings"].clone();
        assert_eq!((&settings["prediction"], &settings["steps"]), (&json!("x0"), &json!(3)));
    }
    let output = draw("v2")?;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("org/name@v2") && error.contains("HF_HUB_OFFLINE"), "{error}");
    Ok(())
}

#[test]
fn imagenet_classes_have_names() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (model, out) = (folder.path().join("model"), folder.path().join("out"));
    // A DiT: without diffusion.json it is taken for the released one.
    let depth = Config {
        architecture: Architecture::Dit,
        depth: 2,
        pre_depth: 0,
        group: 0,
        post_depth: 0,
        ..small(Labels::Classes(1000))
    };
    save(&model, &depth, None)?;
    let flags = ["--weights", text(&model), "--steps", "2", "--out", text(&out)];
    run("sample", &[&flags[..], &["--num", "3", "--label", "golden retriever", "--label", "985"]].concat())?;
    let account = account(&out)?;
    let labels: Vec<_> = (0..3).map(|i| account["pictures"][i]["label"].as_u64()).collect();
    assert_eq!(labels, [Some(207), Some(985), Some(207)]);
    assert_eq!(account["pictures"][1]["name"], json!("daisy"));
    assert_eq!(
        (&account["settings"]["prediction"], &account["pictures"][0]["cost"]["block_passes"]),
        (&json!("eps"), &json!(4))
    );
    // A name of several classes, and none.
    for (name, word) in [("crane", "several"), ("unicorn", "--list-labels")] {
        let error = fails("sample", &[&flags[..], &["--label", name]].concat())?;
        assert!(error.contains(name) && error.contains(word), "{error}");
    }
    // A codec for other latents.
    let four = folder.path().join("four");
    save(&four, &Config { in_channels: 4, ..small(Labels::Classes(1)) }, None)?;
    let error = fails("sample", &["--weights", text(&four), "--codec", "pixels", "--out", text(&out)])?;
    assert!(error.contains("--codec pixels") && error.contains("4 channels"), "{error}");
    Ok(())
}

#[test]
fn label_vectors_come_from_a_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (model, at) = (folder.path().join("model"), |name: &str| folder.path().join(name));
    random(&model, Labels::Vector(3), None)?;
    let rows = Tensor::new(&[[1f32, -2., 0.1], [0.5, 0., 3.]], &Device::Cpu)?;
    rows.write_npy(at("rows.npy"))?;
    candle_core::safetensors::save(&[("rows", rows)].into(), at("rows.safetensors"))?;
    std::fs::write(at("rows.json"), "[[1, -2, 0.1], [0.5, 0, 3]]")?;
    let draw = |more: &[&str], out: &str| -> Result<Vec<Vec<u8>>> {
        let common = ["--weights", text(&model), "--steps", "3", "--num", "3", "--out"];
        run("sample", &[&common[..], &[text(&at(&format!("out-{out}")))], more].concat())?;
        (0..3).map(|i| pixels(&at(&format!("out-{out}")).join(format!("00000{i}.png")))).collect()
    };
    let null = draw(&[], "null")?;
    let npy = draw(&["--label-file", text(&at("rows.npy"))], "npy")?;
    assert!((0..3).all(|i| npy[i] != null[i]), "a label changes nothing");
    for name in ["rows.safetensors", "rows.json"] {
        assert_eq!(draw(&["--label-file", text(&at(name))], name)?, npy, "{name}");
    }
    // Picture 2 has the first row again, which its PNG knows.
    std::fs::remove_file(at("rows.npy"))?;
    run("sample", &["--from-image", text(&at("out-npy").join("000002.png")), "--out", text(&at("again"))])?;
    assert_eq!(pixels(&at("again").join("000002.png"))?, npy[2]);

    std::fs::write(at("short.json"), "[1, 2]")?;
    std::fs::write(at("words.json"), "[\"a\"]")?;
    std::fs::write(at("cut.npy"), b"\x93NUMPY\x01\x00")?;
    for (name, word) in
        [("short.json", "3 numbers"), ("words.json", "numbers"), ("cut.npy", "cut.npy"), ("none.npy", "none.npy")]
    {
        let (out, file) = (at("no"), at(name));
        let error = fails("sample", &["--weights", text(&model), "--out", text(&out), "--label-file", text(&file)])?;
        assert!(error.contains(word) && !error.contains("panicked"), "{name}: {error}");
    }
    let error = fails("sample", &["--weights", text(&model), "--out", text(&at("no")), "--label", "1"])?;
    assert!(error.contains("--label-file"), "{error}");
    Ok(())
}

#[test]
fn a_sweep_writes_a_table_and_a_plot() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (model, out) = (folder.path().join("model"), folder.path().join("out"));
    random(&model, Labels::Classes(4), None)?;
    let flags =
        ["--budgets", "2each,3each", "--allocations", "uniform,adaptive", "--solvers", "picard", "--steps", "3"];
    let more = ["--num", "2", "--converged", "20", "--label", "2", "--plot", "residual", "--reuses", "fresh,reuse"];
    run("sweep", &[&["--weights", text(&model), "--out", text(&out)], &flags[..], &more].concat())?;
    let table = std::fs::read_to_string(out.join("sweep.csv"))?;
    assert_eq!(table.lines().count(), 1 + 8, "{table}");
    assert!(table.lines().skip(1).all(|line| line.split(',').count() == 9), "{table}");
    assert!(std::fs::read_to_string(out.join("sweep.svg"))?.ends_with("</svg>\n"));
    Ok(())
}

/// A run that is asked to stop in the middle leaves nothing that is half written.
#[cfg(unix)]
#[test]
fn ctrl_c_leaves_whole_files_alone() -> Result<()> {
    use std::time::{Duration, Instant};

    let folder = tempfile::tempdir()?;
    let (model, out) = (folder.path().join("model"), folder.path().join("out"));
    random(&model, Labels::Classes(1), None)?;
    for presses in [1, 2] {
        let flags = ["--steps", "200", "--num", "500", "--batch", "2", "--preview", "1", "--out", text(&out)];
        let mut child = example("sample_ffhq")?
            .args([&["--weights", text(&model)], &flags[..]].concat())
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()?;
        let begun = Instant::now();
        while !out.join("000001.png").exists() {
            ensure!(begun.elapsed() < Duration::from_secs(120), "no picture in two minutes");
            ensure!(child.try_wait()?.is_none(), "it ended by itself");
            std::thread::sleep(Duration::from_millis(5));
        }
        for _ in 0..presses {
            ensure!(Command::new("kill").args(["-INT", &child.id().to_string()]).status()?.success(), "kill");
        }
        assert!(!child.wait()?.success(), "an interrupted run is no success");
        let mut found = 0;
        for entry in std::fs::read_dir(&out)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).context("a name")?;
            assert!(name.ends_with(".png"), "{name}: neither half a picture nor an account of half a run");
            image::open(&path).with_context(|| name.to_owned())?;
            found += 1;
        }
        assert!((2..500).contains(&found), "{found} files");
        std::fs::remove_dir_all(&out)?;
    }
    Ok(())
}

#[test]
fn a_main_command_without_weights_says_how_to_name_some() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let error = fails("sample_ffhq", &["--out", text(&folder.path().join("out"))])?;
    assert!(error.contains("--hub") && error.contains("--weights"), "{error}");
    Ok(())
}
