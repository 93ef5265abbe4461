//! The commands as a user types them: samples, their flags, what is refused, and sweeps.

mod command;

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use command::*;
use fpdm_core::checkpoint::write_text;
use fpdm_core::dit::{Architecture, Config, Labels};
use fpdm_core::{CodecId, Diffusion, Normalisation, Parameterization, Recommended};
use serde_json::json;

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
