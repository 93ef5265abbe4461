//! The command that measures many settings, as a user types it.

mod command;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use command::*;
use fpdm_core::dit::{Architecture, Config, Labels};
use fpdm_core::{CodecId, Diffusion, Parameterization, Recommended};
use serde_json::{Value, json};

/// An FPDM and a DiT of classes that know how they were trained.
fn models(folder: &Path) -> Result<[PathBuf; 2]> {
    let said = Diffusion {
        codec: Some(CodecId { id: "pixels".into(), factor: Some(1) }),
        recommended: Recommended {
            spacing: Some("trailing".into()),
            budget: Some("2each".into()),
            ..Default::default()
        },
        ..Diffusion::new(Parameterization::V, "zero-snr".parse()?)
    };
    let (fpdm, dit) = (folder.join("fpdm"), folder.join("dit"));
    random(&fpdm, Labels::Classes(2), Some(&said))?;
    let stack = Config {
        architecture: Architecture::Dit,
        depth: 6,
        pre_depth: 0,
        group: 0,
        post_depth: 0,
        ..small(Labels::None)
    };
    let said = Diffusion { recommended: Recommended { budget: None, ..said.recommended.clone() }, ..said };
    save(&dit, &stack, Some(&said))?;
    Ok([fpdm, dit])
}

fn lines(path: &Path) -> Result<Vec<Value>> {
    std::fs::read_to_string(path)?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

#[test]
fn many_settings_are_measured_in_one_process() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    let (data, out, kept) = (at("data"), at("lines.jsonl"), at("kept"));
    pictures(&data)?;
    let [fpdm, dit] = models(folder.path())?;
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/features/efficientnet_lite0.safetensors");
    let (first, last) = (format!("{}#..5", text(&data)), format!("{}#5..", text(&data)));
    let (fpdm, dit) = (format!("a={}", text(&fpdm)), format!("b={}", text(&dit)));
    let write = |name: &str, lines: &[&str]| -> Result<PathBuf> {
        std::fs::write(at(name), lines.join("\n"))?;
        Ok(at(name))
    };
    let one = write(
        "one.jsonl",
        &[
            r#"{"only": "fpdm", "steps": 3, "budget": "2each"}"#,
            r#"{"only": "fpdm vp", "steps": 3, "budget": "15", "allocation": "adaptive", "guidance": 1.5, "guidance_interval": [0, 0.9]}"#,
            r#"{"only": "fpdm", "budget": "2each", "equal": {"in": "block_passes", "model": "dit", "steps": 4}}"#,
            r#"{"only": "dit", "sampler": "ddpm:small", "steps": 2}"#,
            r#"{"only": "flow", "steps": 9}"#,
        ],
    )?;
    let data =
        ["--reference", &first, "--held-out", &last, "--weights", text(&weights), "--cache", text(folder.path())];
    let few = [
        "--num",
        "6",
        "--batch",
        "4",
        "--decode-batch",
        "3",
        "--subsets",
        "3",
        "--subset-size",
        "2",
        "--device",
        "cpu",
    ];
    let measure = |settings: &str, more: &[&str]| {
        let arguments = ["measure", &fpdm, &dit, "--settings", settings, "--out", text(&out)];
        run("claims", &[&arguments[..], &data, &few, more].concat())
    };
    measure(text(&one), &["--seed", "0,1", "--keep-latents", text(&kept)])?;
    let found = lines(&out)?;
    let of = |model: &str, key: &str, value: Value| -> Vec<Value> {
        found.iter().filter(|line| line["model"] == model && line["settings"][key] == value).cloned().collect()
    };
    assert_eq!((found.len(), of("b", "sampler", json!("ddpm:small")).len()), (8, 2), "{found:#?}");
    let plain = of("a", "allocation", json!("uniform"));
    // Four block passes a step: a DiT's four steps of six are six.
    let steps: Vec<_> = plain.iter().map(|line| line["settings"]["steps"].as_u64()).collect();
    assert_eq!(steps, [Some(3), Some(3), Some(6), Some(6)], "{plain:#?}");
    assert!(plain.iter().all(|l| l["block_passes"].as_f64() == l["settings"]["steps"].as_f64().map(|n| 4. * n)));
    for line in &found {
        let number = |key: &str| line[key].as_f64().with_context(|| format!("{key} of {line}"));
        assert!(number("fd")? > 0. && number("seconds")? > 0. && number("multiply_adds")? > 0., "{line}");
        assert_eq!((number("kid_size")?, line["num"].as_u64()), (2., Some(6)));
        number("kid")?;
    }
    // What `evaluate` finds of the same samples.
    let latents: Vec<PathBuf> =
        std::fs::read_dir(&kept)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    let latents = latents
        .iter()
        .find(|path| text(path).ends_with("ddpm-small-2-1each-uniform-picard-reuse-guidance-1-seed-1.safetensors"));
    let evaluation = at("evaluation");
    let more = ["--codec", "pixels", "--k", "1", "--subsets", "3", "--subset-size", "2", "--device", "cpu", "--out"];
    let latents = text(latents.context("no latents are kept")?);
    run("evaluate", &[&[latents][..], &data, &more, &[text(&evaluation)]].concat())?;
    let evaluated: Value = serde_json::from_slice(&std::fs::read(evaluation.join("evaluation.json"))?)?;
    let line = &of("b", "seed", json!(1))[0];
    for (ours, theirs) in [("fd", &evaluated["frechet_distance"]["value"]), ("kid", &evaluated["kid"]["value"])] {
        let (ours, theirs) = (line[ours].as_f64().context("a number")?, theirs.as_f64().context("a number")?);
        assert!((ours - theirs).abs() < 1e-6 * theirs.abs().max(1.), "{ours} is not {theirs}");
    }
    let closest = evaluated["closest"].as_array().context("pairs")?;
    assert_eq!(closest.len(), 6, "{evaluated}");
    assert!(closest[0]["distance"].as_f64() <= closest[5]["distance"].as_f64(), "{closest:?}");
    assert!(evaluated["below_held_out"]["0.5"].as_f64().is_some_and(|share| (0. ..=1.).contains(&share)));

    // Nothing is measured twice, for another table neither.
    let two =
        write("two.jsonl", &[r#"{"only": "a", "steps": 3, "budget": "2each"}"#, "", r#"{"only": "b", "steps": 1}"#])?;
    let said = measure(text(&one), &["--seed", "1"])?;
    assert!(String::from_utf8_lossy(&said.stdout).starts_with("0 of 4"), "{said:?}");
    assert_eq!(lines(&out)?.len(), 8);
    let said = measure(&format!("{},{}", text(&one), text(&two)), &[])?;
    assert!(String::from_utf8_lossy(&said.stdout).starts_with("1 of 5"), "{said:?}");
    assert_eq!(lines(&out)?.len(), 10);

    let table = |more: &[&str]| -> Result<String> {
        let said = run("claims", &[&["table", text(&out)][..], more].concat())?;
        Ok(String::from_utf8(said.stdout)?)
    };
    let all = table(&["--by", "line"])?;
    assert_eq!(all.lines().count(), 2 + 5, "{all}");
    assert!(all.starts_with("| model | sampler | steps |") && all.contains(" ± ") && all.contains("adaptive"), "{all}");
    let only = table(&["--settings", text(&two), "--by", "fd"])?;
    assert_eq!(only.lines().count(), 2 + 2, "{only}");
    assert!(!only.contains("ddpm") && only.contains("| 12 |") && only.contains("| 6 |"), "{only}");

    // Samples that come to nothing have no line, and cost nobody else theirs.
    let odd = [r#"{"only": "a", "steps": 3, "guidance": 1e300}"#, r#"{"only": "b", "steps": 3}"#];
    let said = measure(text(&write("odd.jsonl", &odd)?), &["--codec-dtype", "f16"])?;
    assert!(String::from_utf8_lossy(&said.stdout).starts_with("1 of 2"), "{said:?}");
    assert!(String::from_utf8_lossy(&said.stderr).contains("a: no line: "), "{said:?}");
    assert_eq!(lines(&out)?.len(), 11);

    // The tables that come with the command fit: what is missing is said after that.
    let missing = ["--reference", &first, "--held-out", "nowhere", "--weights", text(&weights), "--out", text(&out)];
    let [around, within] = ["fpdm-2-1-2=", "fpdm-1-3-1="].map(|name| fpdm.replacen("a=", name, 1));
    for (models, settings) in [
        (&[&*fpdm, &*dit][..], "budgets,equal,iterations,reuse,allocation,plain"),
        (&[&*fpdm], "guidance"),
        (&[&*around, &*within], "depth"),
    ] {
        let error = fails("claims", &[&["measure"], models, &missing, &["--settings", settings]].concat())?;
        assert!(error.contains("nowhere: there is no such file"), "{settings}: {error}");
    }

    // Before any work.
    for (settings, message) in [
        ("none", "neither a file nor one of budgets"),
        (r#"{"step": 3}"#, "--step"),
        (r#"{"steps": 3, "budget": "1"}"#, "budget"),
        (r#"{"steps": 3, "seed": 1}"#, "`seed` is for the command line"),
        (r#"{"budget": "2each", "equal": {"in": "seconds", "model": "c", "steps": 3}}"#, "no model is `c`"),
        (r#"{"steps": 1, "equal": {"in": "seconds", "model": "b", "steps": 3}}"#, "one too many"),
        (r#"{"steps": true}"#, "neither a text nor a number"),
        (r#"{"only": "nobody", "steps": 3}"#, "no line is for these models, but for `nobody`"),
    ] {
        let file = at("wrong.jsonl");
        std::fs::write(&file, settings)?;
        let named = if settings.starts_with('{') { text(&file) } else { settings };
        let arguments = ["measure", &fpdm, &dit, "--settings", named, "--out", text(&out)];
        let error = fails("claims", &[&arguments[..], &data, &few].concat())?;
        assert!(error.contains(message), "{settings}: {error}");
    }
    assert_eq!(lines(&out)?.len(), 11);
    Ok(())
}

#[test]
fn training_says_what_it_has_cost() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    let (images, runs) = (at("images"), [at("run-0"), at("run-1")]);
    pictures(&images)?;
    for (i, run_to) in runs.iter().enumerate() {
        let seed = i.to_string();
        let small = [
            "--codec",
            "pixels",
            "--side",
            "8",
            "--size",
            "tiny",
            "--batch-size",
            "2",
            "--steps",
            "3",
            "--seed",
            &seed,
        ];
        let said = run("train", &[&[text(&images), "--out", text(run_to)][..], &small].concat())?;
        let summary: Value = serde_json::from_str(&std::fs::read_to_string(run_to.join("summary.json"))?)?;
        let printed = String::from_utf8(said.stdout)?;
        assert_eq!(serde_json::from_str::<Value>(printed.lines().next().context("nothing was printed")?)?, summary);
        assert_eq!((&summary["steps"], &summary["batch"], &summary["seed"]), (&json!(3), &json!(2), &json!(i)));
        let number = |key: &str| summary[key].as_f64().with_context(|| format!("{key} of {summary}"));
        assert!((number("images_per_s")? * number("seconds")? - 6.).abs() < 1e-6, "{summary}");
        assert!(number("parameters")? > 1e4 && number("seconds_a_step")? > 0.);
    }
    let named = runs.each_ref().map(|run| format!("tiny={}", text(run)));
    let table = String::from_utf8(run("claims", &["costs", &named[0], &named[1]])?.stdout)?;
    assert!(table.lines().count() == 3 && table.contains("| tiny | ") && table.contains("| 3 ± 0 | "), "{table}");
    let error = fails("claims", &["costs", text(&images)])?;
    assert!(error.contains("summary.json"), "{error}");
    Ok(())
}
