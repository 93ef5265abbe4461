//! The commands as a user types them: images to latents, training, codecs, conversion, evaluation.

mod command;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use command::*;
use fpdm_core::checkpoint::write_text;
use fpdm_core::{CodecId, Diffusion, Normalisation, Parameterization};
use serde_json::json;

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

    let nowhere = fails("train", &[text(&at("nowhere")), "--out", text(&at("no"))])?;
    assert!(nowhere.contains("there is no such file or folder; `encode_dataset`"), "{nowhere}");

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
    run_to(
        &at("run-both"),
        &[&of[..], &["--train-encoder", "--latents-dtype", "bf16", "--seconds", "600", "--export", text(&both)]]
            .concat(),
    )?;
    let tensor = |codec: &Path, name: &str| -> Result<Vec<f32>> {
        let tensors = candle_core::safetensors::load(codec.join("diffusion_pytorch_model.safetensors"), &Device::Cpu)?;
        Ok(tensors[name].to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    };
    let (encoder, first) = ("encoder.layers.0.weight", "decoder.layers.0.weight");
    assert_eq!(tensor(&decoder, encoder)?, tensor(&own, encoder)?);
    assert_ne!(tensor(&decoder, first)?, tensor(&own, first)?);
    assert_ne!(tensor(&both, encoder)?, tensor(&own, encoder)?);
    fpdm_vae::open(text(&both), DType::F32, &Device::Cpu)?;

    // The same beside a critic, whose state is part of the run and not of the codec; memory is only a matter of time.
    let critic = ["--adversarial-weight", "0.1", "--matching-weight", "0.2", "--adversarial-from", "1"];
    let critic = [&critic[..], &["--critic-width", "8", "--critic-levels", "2", "--critic-lr", "1e-3"]].concat();
    let beside = ["--latents-of", text(&own), "--decay", "constant", "--compare"];
    let beside = [&beside[..], &critic].concat();
    let (at_once, in_two, alone) = (at("at-once"), at("in-two"), at("alone"));
    let made = ["made-at-once", "made-in-two", "made-alone"].map(at);
    run_to(&at_once, &[&beside[..], &["--steps", "4", "--export", text(&made[0])]].concat())?;
    run_to(&in_two, &[&beside[..], &["--steps", "2", "--memory", "0"]].concat())?;
    run_to(&in_two, &[&beside[..], &["--steps", "4", "--resume", "--export", text(&made[1])]].concat())?;
    run_to(&alone, &[&beside[..5], &["--steps", "4", "--export", text(&made[2])]].concat())?;
    assert!(weights(&made[0])? == weights(&made[1])?, "a run that goes on beside its critic is another run");
    assert!(weights(&made[0])? != weights(&made[2])?, "the critic taught nothing");
    fpdm_vae::open(text(&made[0]), DType::F32, &Device::Cpu)?;
    let moments = in_two.join("checkpoints/step-0000000004/optimiser.safetensors");
    let moments = candle_core::safetensors::load(moments, &Device::Cpu)?;
    for side in ["decoder.", "critic."] {
        let squares: Vec<_> = moments.iter().filter(|(n, _)| n.starts_with(&format!("exp_avg_sq.{side}"))).collect();
        assert!(squares.len() > 10, "{} tensors of {side}", squares.len());
        for (name, square) in squares {
            assert!(square.max_all()?.to_scalar::<f32>()? > 0., "no gradient reaches {name}");
        }
    }
    let lines = log(&in_two)?;
    assert!(lines[0]["codec"] == "latents-of" && lines[0]["psnr"].is_f64(), "{}", lines[0]);
    let told = |step: u64, name: &str| {
        lines.iter().find(|line| line["step"] == step && line["loss"].is_f64()).and_then(|line| line[name].as_f64())
    };
    assert!(told(1, "critic") == Some(0.) && told(2, "critic") > Some(0.1) && told(2, "matching") > Some(0.));
    let on = at("on");
    let go_on = ["--start", text(&made[0]), "--lr", "0", "--steps", "1", "--export", text(&on)];
    run_to(&at("run-on"), &[&beside[..], &go_on].concat())?;
    assert!(weights(&made[0])? == weights(&on)?, "a run that begins with a codec and learns nothing has another");
    let narrower = |argument: &&'static str| if *argument == "12" { "8" } else { *argument };
    let narrow = [&[text(&images)][..], &tiny, &small.each_ref().map(narrower), &often].concat();
    let narrow = [&narrow[..], &["--start", text(&made[0]), "--out", text(&in_two), "--resume"]].concat();
    let error = fails("train_codec", &narrow)?;
    assert!(error.contains("--start") && error.contains("should be"), "{error}");
    let other = [&beside[..], &["--steps", "5", "--resume", "--critic-penalty", "1", "--out", text(&in_two)]].concat();
    let error = fails("train_codec", &[&common[..], &other].concat())?;
    assert!(error.contains("critic.penalty"), "{error}");

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
