//! The GPU's side of every comparison with PyTorch, as JSON lines in the form of `benches/pytorch/baseline.py`.
//!
//! Not criterion: both sides must be timed alike, in one process each, on the same card in the same minutes.
//!
//! ```sh
//! cargo bench --features cuda --bench gpu -- --batches 1,8,64 --hidden 1152 --heads 16 --tokens 256
//! ```

use std::time::Instant;

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use clap::Parser;
use fpdm_core::dit::{Architecture, Config, Dit, Fpdit, Labels, Size, init, perturb_gates};
use fpdm_core::rng::{Stream, normal_batch};
use fpdm_core::{Budget, ImplicitModel, Moments, Picard, Problem, solve};
use fpdm_kernels::cuda;
use fpdm_sample::{Explicit, Graphed, Graphs};
use fpdm_train::{Batch, DataSource, Memory, MultiStepJfb, Objective, Settings, Trainer};

/// Times applications, denoiser calls and training steps on a GPU.
#[derive(Parser)]
struct Options {
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
    batches: Vec<usize>,
    #[arg(long, default_value_t = 64)]
    train_batch: usize,
    /// Of the DiT.
    #[arg(long, default_value_t = 28)]
    depth: usize,
    #[arg(long, default_value_t = 1152)]
    hidden: usize,
    #[arg(long, default_value_t = 16)]
    heads: usize,
    /// A square number.
    #[arg(long, default_value_t = 256)]
    tokens: usize,
    /// Only cases whose names start so.
    #[arg(long, default_value = "")]
    only: String,
    #[arg(long, default_value_t = 20)]
    repeats: usize,
    /// Given by `cargo bench`.
    #[arg(long)]
    bench: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let device = cuda::cuda(0, cuda::Cuda::default())?;
    for &batch in &options.batches {
        inference(&options, batch, &device)?;
    }
    let fpdm = config(&options)?;
    let dit = Config {
        hidden_size: fpdm.hidden_size,
        num_heads: fpdm.num_heads,
        input_size: fpdm.input_size,
        labels: fpdm.labels,
        depth: options.depth,
        ..Config::dit(Size::XL, 2)
    };
    // The published objective learns variances; PyTorch's side of the comparison does not.
    let mean = Config { learn_sigma: false, ..fpdm.clone() };
    for (name, config, memory) in [
        ("train.fpdm.store", &fpdm, Memory::Store),
        ("train.fpdm.recompute", &fpdm, Memory::Recompute(1)),
        ("train.flow.store", &mean, Memory::Store),
        ("train.flow.recompute", &mean, Memory::Recompute(1)),
        ("train.dit", &dit, Memory::Store),
    ] {
        if name.starts_with(&options.only) {
            training(&options, name, config, memory, &device)?;
        }
    }
    Ok(())
}

fn config(options: &Options) -> Result<Config> {
    let side = options.tokens.isqrt();
    ensure!(side * side == options.tokens, "--tokens: {} is no square number", options.tokens);
    Ok(Config {
        hidden_size: options.hidden,
        num_heads: options.heads,
        input_size: [2 * side, 2 * side],
        labels: Labels::Classes(1),
        ..Config::fpdm(Size::XL, 2)
    })
}

fn network(config: &Config, device: &Device) -> Result<(VarMap, Fpdit)> {
    let weights = init(config, 0, DType::BF16, device)?;
    perturb_gates(config, &weights, 1, 0.02)?;
    let model = Fpdit::new(config, VarBuilder::from_varmap(&weights, DType::BF16, device))?;
    Ok((weights, model))
}

fn report(case: &str, batch: usize, ms: f64, more: serde_json::Value) {
    println!("{}", serde_json::json!({ "case": case, "batch": batch, "ms": ms, "more": more }));
}

/// The median of three means, each over `repeats` calls, after a warm-up.
fn clock(device: &Device, repeats: usize, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    for _ in 0..5 {
        f()?;
    }
    let mut all = [0.; 3];
    for time in &mut all {
        device.synchronize()?;
        let start = Instant::now();
        for _ in 0..repeats {
            f()?;
        }
        device.synchronize()?;
        *time = start.elapsed().as_secs_f64() * 1e3 / repeats as f64;
    }
    all.sort_by(f64::total_cmp);
    Ok(all[1])
}

fn inference(options: &Options, batch: usize, device: &Device) -> Result<()> {
    let config = config(options)?;
    let (_, model) = network(&config, device)?;
    let [h, w] = config.input_size;
    let ids: Vec<u64> = (0..batch as u64).collect();
    let x = normal_batch(1, Stream::Data, &ids, (config.in_channels, h, w), DType::BF16, device)?;
    let t = Tensor::full(500f32, batch, device)?;
    let y = Tensor::zeros(batch, DType::U32, &Device::Cpu)?;
    let frozen = fpdm_core::params::frozen(&weights_of(&config, device)?)?;
    let frozen = Fpdit::new(&config, frozen)?;
    let problem: Problem = frozen.prepare(&x, &t, &y)?;
    drop(model);
    if "iteration".starts_with(&options.only) || options.only.starts_with("iteration") {
        let mut z = problem.z0.clone();
        let ms = clock(device, options.repeats, || {
            z = problem.frozen.apply(&z)?;
            Ok(())
        })?;
        report("iteration.plain", batch, ms, serde_json::json!(null));
        let graph = cuda::Graph::record(device, || {
            problem.frozen.apply(&problem.z0).map_err(candle_core::Error::wrap).map(|z| vec![z])
        })?;
        let ms = clock(device, options.repeats, || {
            graph.replay()?;
            Ok(())
        })?;
        report("iteration.graphs", batch, ms, serde_json::json!(null));
    }
    if "forward".starts_with(&options.only) || options.only.starts_with("forward") {
        let ms = clock(device, options.repeats, || {
            let problem = frozen.prepare(&x, &t, &y)?;
            let mut z = problem.z0.clone();
            for _ in 0..6 {
                z = problem.frozen.apply(&z)?;
            }
            problem.readout(&z)?;
            Ok(())
        })?;
        report("forward.plain", batch, ms, serde_json::json!(null));
        // All of it as one graph over inputs that stay where they are, as PyTorch's side does it.
        let staged = frozen.staged().ok_or_else(|| anyhow::anyhow!("forward.whole: the network has no stages"))?;
        let inputs = staged.inputs(&x, &t, &y)?;
        let graph = cuda::Graph::record(device, || {
            let call = || {
                let problem = staged.assemble(&staged.state(&inputs)?)?;
                let (_, z) = problem.frozen.repeat(&problem.z0, 6)?;
                Ok(vec![problem.readout(&z)?])
            };
            call().map_err(|e: fpdm_core::Error| candle_core::Error::wrap(e))
        })?;
        let ms = clock(device, options.repeats, || {
            graph.replay()?;
            Ok(())
        })?;
        report("forward.whole", batch, ms, serde_json::json!(null));
        drop(graph);
        // As a sampler with a fixed budget does it, at every size.
        let graphed = Graphed::new(frozen, Graphs::On);
        let ms = clock(device, options.repeats, || {
            let problem = graphed.prepare(&x, &t, &y)?;
            let found = solve(&Picard::default(), &*problem.frozen, problem.z0.clone(), &mut Budget(6))?;
            problem.readout(&found.z)?;
            Ok(())
        })?;
        ensure!(graphed.replays() > 0, "forward.graphs: nothing was recorded");
        report("forward.graphs", batch, ms, serde_json::json!(null));
    }
    Ok(())
}

fn weights_of(config: &Config, device: &Device) -> Result<VarMap> {
    Ok(network(config, device)?.0)
}

/// The same batch again and again: what is timed is the step.
struct Same(Batch);

impl DataSource for Same {
    fn batch(&self, _: u64, _: usize) -> fpdm_core::Result<Batch> {
        Ok(self.0.clone())
    }
}

fn training(options: &Options, name: &str, config: &Config, memory: Memory, device: &Device) -> Result<()> {
    let weights = init(config, 0, DType::BF16, device)?;
    perturb_gates(config, &weights, 1, 0.02)?;
    let vb = VarBuilder::from_varmap(&weights, DType::BF16, device);
    let model: Box<dyn ImplicitModel> = match config.architecture {
        Architecture::Fpdm => Box::new(Fpdit::new(config, vb)?),
        Architecture::Dit => Box::new(Explicit::new(Dit::new(config, vb)?)),
    };
    let batch = options.train_batch;
    let positions: Vec<u64> = (0..batch as u64).collect();
    let [h, w] = config.input_size;
    let mean = normal_batch(0, Stream::Data, &positions, (config.in_channels, h, w), DType::F32, device)?;
    let moments = Moments { std: mean.zeros_like()?, mean };
    let source = Same(Batch { moments, y: Tensor::zeros(batch, DType::U32, &Device::Cpu)?, positions });
    let iterations = if config.architecture == Architecture::Fpdm { (6, 6) } else { (0, 1) };
    let estimator = MultiStepJfb { without_grad: iterations.0, with_grad: iterations.1, memory, ..Default::default() };
    let settings = Settings { batch_size: batch, ema: vec![], max_grad_norm: None, ..Default::default() };
    let objective = if config.learn_sigma { Objective::published()? } else { Objective::flow() };
    let mut trainer =
        Trainer::new(model, config.labels, &weights, objective, Box::new(estimator), settings, serde_json::json!({}))?;
    let pairs = trainer.recipe().pairs(&source, 0)?.to_device(device)?;
    trainer.advance(&mut |_| Ok(pairs.clone()))?;
    device.synchronize()?;
    cuda::reset_peak(device)?;
    let ms = clock(device, (options.repeats / 4).max(2), || Ok(trainer.advance(&mut |_| Ok(pairs.clone()))?))?;
    trainer.report()?;
    let gib = cuda::peak_bytes(device).map(|b| b as f64 / f64::from(1 << 30));
    report(name, batch, ms, serde_json::json!({ "peak_gib": gib, "images_per_s": batch as f64 / ms * 1e3 }));
    Ok(())
}
