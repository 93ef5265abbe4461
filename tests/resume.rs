//! A run that is interrupted is the run that was not, and an interrupted save loses nothing.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use fpdm_core::dit::{Config, Fpdit, Labels, Size, init, perturb_gates};
use fpdm_core::rng::{self, Stream};
use fpdm_core::{Error, Moments, Result};
use fpdm_train::{
    AdamWConfig, Ahead, Batch, Consistency, DataSource, Decay, JacobianPenalty, LearningRate, Memory, Objective, Order,
    Pairs, Settings, State, StepReport, StochasticJfb, Supervision, Trainer, latest_checkpoint,
};
use serde_json::json;

const CPU: Device = Device::Cpu;
const CLASSES: usize = 3;

/// Eleven latents of noise around their class.
struct Blobs(Order);

impl Blobs {
    fn new() -> Result<Self> {
        Ok(Self(Order::new(11, 5)?))
    }
}

impl DataSource for Blobs {
    fn batch(&self, index: u64, size: usize) -> Result<Batch> {
        let positions: Vec<u64> = (index * size as u64..(index + 1) * size as u64).collect();
        let samples: Vec<u64> = positions.iter().map(|&p| self.0.at(p) as u64).collect();
        let noise = rng::normal_batch(9, Stream::Noise, &samples, (4, 4, 4), DType::F32, &CPU)?;
        let classes: Vec<u32> = samples.iter().map(|s| (s % CLASSES as u64) as u32).collect();
        let centres: Vec<f32> = classes.iter().map(|&c| c as f32 - 1.).collect();
        let mean = (noise * 0.1)?.broadcast_add(&Tensor::from_vec(centres, (size, 1, 1, 1), &CPU)?)?;
        let std = (mean.ones_like()? * 0.01)?;
        Ok(Batch { moments: Moments { mean, std }, y: Tensor::new(classes, &CPU)?, positions })
    }
}

fn settings() -> Settings {
    Settings {
        batch_size: 4,
        accumulate: 2,
        lr: LearningRate { peak: 2e-3, warmup: 2, decay: Decay::Cosine, total: 40, floor: 0.1 },
        adamw: AdamWConfig { weight_decay: 0.01, ..Default::default() },
        ema: vec![0.9, 0.99],
        ..Default::default()
    }
}

fn trainer(settings: Settings, dtype: DType) -> Result<(Trainer<Fpdit>, VarMap)> {
    let config = Config {
        input_size: [4, 4],
        hidden_size: 16,
        num_heads: 2,
        labels: Labels::Classes(CLASSES),
        ..Config::fpdm(Size::S, 2)
    };
    let weights = init(&config, 1, dtype, &CPU)?;
    perturb_gates(&config, &weights, 2, 0.02)?;
    let model = Fpdit::new(&config, VarBuilder::from_varmap(&weights, dtype, &CPU))?;
    let estimator =
        StochasticJfb { without_grad: 0..=2, with_grad: 1..=3, memory: Memory::Recompute(2), ..Default::default() };
    let description = json!({ "model": config });
    let objective = Objective::published()?;
    let run = Trainer::new(model, config.labels, &weights, objective, Box::new(estimator), settings, description)?;
    Ok((run, weights))
}

fn bits(state: &State) -> Vec<(String, Vec<u32>)> {
    let groups = [("w", &state.weights), ("m", &state.exp_avg), ("v", &state.exp_avg_sq)];
    let ema = state.ema.iter().map(|(_, named)| ("e", named));
    groups
        .into_iter()
        .chain(ema)
        .flat_map(|(kind, named)| named.iter().map(move |(name, t)| (format!("{kind}.{name}"), t)))
        .map(|(name, t)| {
            let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            (name, values.into_iter().map(f32::to_bits).collect())
        })
        .collect()
}

#[test]
fn ten_steps_are_five_saved_loaded_and_five() -> Result<()> {
    for dtype in [DType::F32, DType::BF16] {
        let data = Blobs::new()?;
        let (mut whole, _) = trainer(settings(), dtype)?;
        let reports = whole.steps(&data).take(10).collect::<Result<Vec<_>>>()?;

        let folder = tempfile::tempdir().unwrap();
        let (mut first, _) = trainer(settings(), dtype)?;
        for _ in 0..5 {
            first.step(&data)?;
        }
        let path = first.state()?.save(folder.path(), 2)?;
        drop(first);
        let (mut second, _) = trainer(settings(), dtype)?;
        second.restore(&State::load(&path)?)?;
        assert_eq!(second.steps_done(), 5);
        for want in &reports[5..] {
            let got = second.step(&data)?;
            assert_eq!((got.step, got.loss, got.grad_norm), (want.step, want.loss, want.grad_norm));
            assert_eq!((got.n, got.m, got.residual, got.lr), (want.n, want.m, want.residual, want.lr));
        }
        assert!(bits(&whole.state()?) == bits(&second.state()?), "{dtype:?}: other weights after resuming");
    }
    Ok(())
}

#[test]
fn a_small_network_learns() -> Result<()> {
    let data = Blobs::new()?;
    let (mut run, _) =
        trainer(Settings { lr: LearningRate { peak: 3e-3, ..Default::default() }, ..settings() }, DType::F32)?;
    let losses: Vec<f64> = run.steps(&data).take(120).map(|r| r.map(|r| r.error)).collect::<Result<_>>()?;
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let (start, end) = (mean(&losses[..20]), mean(&losses[100..]));
    assert!(end < 0.7 * start, "{start} became {end}");
    Ok(())
}

#[test]
fn every_option_trains_and_reports() -> Result<()> {
    let options = Settings {
        supervision: Supervision::Discounted(0.8),
        jacobian: Some(JacobianPenalty::default()),
        consistency: Some(Consistency::default()),
        ..settings()
    };
    let (mut run, _) = trainer(options, DType::F32)?;
    let report = run.step(&Blobs::new()?)?;
    assert!(report.jacobian > 0. && report.consistency > 0. && report.bound > 0. && report.error > 0.);
    let sum = report.error + report.bound + report.jacobian + report.consistency;
    assert!((report.loss - sum).abs() < 1e-12);
    assert!(report.residual > 0. && report.grad_norm > 0. && report.images_per_s > 0.);
    let line = serde_json::to_string(&report).unwrap();
    assert!(!line.contains('\n') && line.contains("\"grad_norm\":"));
    Ok(())
}

#[test]
fn accumulating_is_a_larger_batch() -> Result<()> {
    let gradient = |batch_size, accumulate| -> Result<f64> {
        let (mut run, _) = trainer(Settings { batch_size, accumulate, ..settings() }, DType::F32)?;
        Ok(run.step(&Blobs::new()?)?.grad_norm)
    };
    let (one, two) = (gradient(4, 1)?, gradient(2, 2)?);
    assert!((one - two).abs() < 1e-5 * one, "{one} and {two}");
    Ok(())
}

#[test]
fn a_checkpoint_of_another_configuration_names_the_fields() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = trainer(settings(), DType::F32)?;
    let path = run.state()?.save(folder.path(), 1)?;
    let (mut other, _) = trainer(Settings { batch_size: 8, seed: 3, ..settings() }, DType::F32)?;
    let error = other.restore(&State::load(&path)?).unwrap_err().to_string();
    assert!(error.contains("training.batch_size is 4 there and 8 here"), "{error}");
    assert!(error.contains("training.seed is 0 there and 3 here"), "{error}");
    let error = other.state()?.save(folder.path(), 1).unwrap_err().to_string();
    assert!(error.contains("another folder"), "{error}");
    Ok(())
}

#[test]
fn damage_is_found_and_named() -> Result<()> {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("truncated", |f| std::fs::write(f, &std::fs::read(f).unwrap()[..99]).unwrap()),
        ("corrupt", |f| {
            let mut bytes = std::fs::read(f).unwrap();
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            std::fs::write(f, bytes).unwrap();
        }),
        ("No such file", |f| std::fs::remove_file(f).unwrap()),
        ("truncated", |f| std::fs::write(f, b"").unwrap()),
    ];
    let (run, _) = trainer(settings(), DType::F32)?;
    for (word, damage) in damages {
        for file in ["weights.safetensors", "optimiser.safetensors", "ema-0.9.safetensors"] {
            let folder = tempfile::tempdir().unwrap();
            let path = run.state()?.save(folder.path(), 1)?;
            damage(&path.join(file));
            let error = State::load(&path).unwrap_err().to_string();
            assert!(error.contains(file) && error.contains(word), "{error}");
        }
    }
    Ok(())
}

#[test]
fn the_last_k_are_kept_and_a_failed_save_leaves_them() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = trainer(settings(), DType::F32)?;
    let state = run.state()?;
    for step in 1..=4 {
        State { step, ..state.clone() }.save(folder.path(), 2)?;
    }
    let mut names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["step-0000000003", "step-0000000004"]);
    assert!(state.save(folder.path(), 0).is_err());
    // A file where a folder must be: nothing can be written below it.
    let file = folder.path().join("file");
    std::fs::write(&file, b"").unwrap();
    assert!(matches!(state.save(&file, 1), Err(Error::Io { .. })));
    assert_eq!(State::load(latest_checkpoint(folder.path())?.unwrap())?.step, 4);
    assert_eq!(latest_checkpoint(folder.path().join("nowhere"))?, None);
    Ok(())
}

#[test]
fn a_gradient_that_is_no_number_changes_nothing() -> Result<()> {
    struct Broken;
    impl DataSource for Broken {
        fn batch(&self, index: u64, size: usize) -> Result<Batch> {
            let batch = Blobs::new()?.batch(index, size)?;
            let mean = (batch.moments.mean * f64::NAN)?;
            Ok(Batch { moments: Moments { mean, std: batch.moments.std }, ..batch })
        }
    }
    let (mut run, _) = trainer(settings(), DType::F32)?;
    run.step(&Blobs::new()?)?;
    let before = bits(&run.state()?);
    let error = run.step(&Broken).unwrap_err();
    assert!(matches!(error, Error::NonFinite { .. }), "{error}");
    assert!(before == bits(&run.state()?));
    assert_eq!(run.steps_done(), 1);
    Ok(())
}

#[test]
fn steps_that_nobody_looks_at_are_the_same_steps() -> Result<()> {
    let data = std::sync::Arc::new(Blobs::new()?);
    let (mut watched, _) = trainer(settings(), DType::F32)?;
    let reports = watched.steps(&data).take(6).collect::<Result<Vec<_>>>()?;
    let (mut run, _) = trainer(settings(), DType::F32)?;
    let (recipe, source) = (run.recipe(), data.clone());
    let ahead = Ahead::new(2, 3, move |index| recipe.pairs(&source, index))?;
    for _ in 0..6 {
        run.advance(&mut |index| ahead.get(index))?;
    }
    let report = run.report()?;
    assert_eq!((report.step, report.steps), (6, 6));
    let mean = |of: fn(&StepReport) -> f64| reports.iter().map(of).sum::<f64>() / 6.;
    assert!((report.loss - mean(|r| r.loss)).abs() < 1e-6 * report.loss);
    assert!((report.grad_norm - mean(|r| r.grad_norm)).abs() < 1e-6 * report.grad_norm);
    let last = &reports[5];
    assert_eq!((report.n, report.m, report.residual, report.lr), (last.n, last.m, last.residual, last.lr));
    assert!(bits(&watched.state()?) == bits(&run.state()?));
    assert!(run.report().unwrap_err().to_string().contains("no step"));
    assert!(run.seconds() > 0. && run.state()?.seconds == run.seconds());
    Ok(())
}

#[test]
fn weights_that_are_no_numbers_are_reported_and_not_saved() -> Result<()> {
    let (mut run, _) = trainer(settings(), DType::F32)?;
    let (recipe, data) = (run.recipe(), Blobs::new()?);
    for broken in [false, true, false] {
        run.advance(&mut |index| {
            let pairs = recipe.pairs(&data, index)?;
            let factor = if broken { f64::NAN } else { 1. };
            Ok(Pairs { x0: (&pairs.x0 * factor)?, ..pairs })
        })?;
    }
    let error = run.report().unwrap_err();
    assert!(matches!(error, Error::NonFinite { .. }) && error.to_string().contains("steps 1 to 3"), "{error}");
    let error = run.state().unwrap_err();
    assert!(matches!(error, Error::NonFinite { .. }) && error.to_string().contains("weights"), "{error}");
    Ok(())
}

#[test]
fn labels_outside_the_classes_are_refused() -> Result<()> {
    struct Mislabelled;
    impl DataSource for Mislabelled {
        fn batch(&self, index: u64, size: usize) -> Result<Batch> {
            let batch = Blobs::new()?.batch(index, size)?;
            Ok(Batch { y: Tensor::full(7u32, size, &CPU)?, ..batch })
        }
    }
    let error = trainer(settings(), DType::F32)?.0.step(&Mislabelled).unwrap_err().to_string();
    assert!(error.contains("class 7 at position 0") && error.contains("0 to 2"), "{error}");
    Ok(())
}

const ROLE: &str = "FPDM_TEST_SAVES_INTO";
const KILLS: usize = 40;

/// What the killed process does: saves one state after the other for ever.
fn save_for_ever(folder: &Path) -> Result<()> {
    let (run, _) = trainer(settings(), DType::F32)?;
    let state = run.state()?;
    let last = match latest_checkpoint(folder)? {
        Some(path) => State::load(path)?.step,
        None => 0,
    };
    for step in last + 1.. {
        State { step, ..state.clone() }.save(folder, 2)?;
    }
    Ok(())
}

#[test]
fn a_kill_at_any_moment_leaves_a_loadable_checkpoint() -> Result<()> {
    if let Some(folder) = std::env::var_os(ROLE) {
        return save_for_ever(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let mut last = 0;
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_kill_at_any_moment_leaves_a_loadable_checkpoint"])
            .env(ROLE, folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The clock starts with the child's first own checkpoint, so that the kill falls into one of the next.
        let start = Instant::now();
        let step = || latest_checkpoint(folder.path()).unwrap().map_or(0, |p| number(&p));
        while step() <= last {
            assert!(start.elapsed() < Duration::from_secs(60), "the child saves nothing");
            assert!(child.try_wait().unwrap().is_none(), "the child has ended by itself");
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_micros(kill as u64 * 397 % 9000));
        child.kill().unwrap();
        child.wait().unwrap();
        let path = latest_checkpoint(folder.path())?.expect("a checkpoint was there");
        let state = State::load(&path)?;
        assert!(state.step > last, "a checkpoint was lost: {} after {last}", state.step);
        last = state.step;
    }
    println!("{KILLS} kills, {last} checkpoints");
    Ok(())
}

fn number(path: &Path) -> u64 {
    path.file_name().unwrap().to_str().unwrap()["step-".len()..].parse().unwrap()
}

const SHORT: &str = "FPDM_TEST_DISK_IS_FULL_FOR";

/// A child that may write files of so many blocks only, as on a disk that fills up.
#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_and_loses_nothing() -> Result<()> {
    if let Some(folder) = std::env::var_os(SHORT) {
        let (run, _) = trainer(settings(), DType::F32)?;
        let state = State { step: 2, ..run.state()? };
        let saved = state.save(Path::new(&folder), 1);
        // Told by the exit status: the harness's own output is cut short too.
        std::process::exit(match saved {
            Ok(_) => 10,
            Err(Error::Io { .. }) => 20,
            Err(_) => 30,
        });
    }
    let mut ends = Vec::new();
    for blocks in [1, 100, 200, 400, 1 << 20] {
        let folder = tempfile::tempdir().unwrap();
        let (run, _) = trainer(settings(), DType::F32)?;
        let before = State { step: 1, ..run.state()? };
        before.save(folder.path(), 1)?;
        // An ignored signal stays ignored: writing beyond the limit is then an error and no death.
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" --exact \"$1\"");
        let status = Command::new("sh")
            .args(["-c", &script])
            .arg(std::env::current_exe().unwrap())
            .arg("a_full_disk_is_an_error_and_loses_nothing")
            .env(SHORT, folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        let want = if status.code() == Some(10) { "step-0000000002" } else { "step-0000000001" };
        assert_eq!(left, [want], "{blocks} blocks: {status}");
        let loaded = State::load(folder.path().join(want))?;
        assert!(bits(&loaded) == bits(&before));
        ends.push(status.code());
    }
    // The smallest limit stops the first file, the largest none.
    assert_eq!((ends.first(), ends.last()), (Some(&Some(20)), Some(&Some(10))), "{ends:?}");
    assert!(ends.iter().all(|end| [Some(10), Some(20)].contains(end)), "{ends:?}");
    println!("{ends:?}");
    Ok(())
}
