//! Peak memory of training steps with stored and with recomputed graphs, each in a process of its own:
//! `train_memory [BATCH] [ITERATIONS]`, FPDM-S/2 on latents of 24×24×4.

use std::process::Command;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use fpdm_core::dit::{Config, Fpdit, Labels, Size, init};
use fpdm_core::rng::{Stream, normal_batch};
use fpdm_core::{Error, Moments, Result};
use fpdm_train::{
    Batch, DataSource, Memory, MultiStepJfb, Objective, Settings, StepReport, Trainer, peak_resident_bytes,
};

/// Names the policy of a child: `store`, or the length of a segment.
const POLICY: &str = "FPDM_BENCH_POLICY";
const STEPS: usize = 3;

struct Noise;

impl DataSource for Noise {
    fn batch(&self, index: u64, size: usize) -> Result<Batch> {
        let positions: Vec<u64> = (index * size as u64..(index + 1) * size as u64).collect();
        let mean = normal_batch(0, Stream::Data, &positions, (4, 24, 24), DType::F32, &Device::Cpu)?;
        let moments = Moments { std: mean.zeros_like()?, mean };
        Ok(Batch { moments, y: Tensor::zeros(size, DType::U32, &Device::Cpu)?, positions })
    }
}

/// Trains a few steps and prints the megabytes before and at the peak, and the seconds of the last step.
fn child(memory: Memory, batch_size: usize, with_grad: usize) -> Result<()> {
    let config = Config { input_size: [24, 24], labels: Labels::Classes(1), ..Config::fpdm(Size::S, 2) };
    let weights = init(&config, 0, DType::F32, &Device::Cpu)?;
    let model = Fpdit::new(&config, VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu))?;
    let estimator = MultiStepJfb { without_grad: 0, with_grad, memory, ..Default::default() };
    let settings = Settings { batch_size, ..Default::default() };
    let objective = Objective::published()?;
    let nothing = serde_json::json!({});
    let mut run = Trainer::new(model, config.labels, &weights, objective, Box::new(estimator), settings, nothing)?;
    let before = peak_resident_bytes().unwrap_or_default();
    let reports = run.steps(&Noise).take(STEPS).collect::<Result<Vec<StepReport>>>()?;
    let peak = peak_resident_bytes().unwrap_or_default();
    println!("{:5} {:5} {:6.2}", before >> 20, peak >> 20, reports[STEPS - 1].seconds);
    Ok(())
}

fn main() -> Result<()> {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let (batch, iterations) = (numbers.first().copied().unwrap_or(8), numbers.get(1).copied().unwrap_or(6));
    if let Ok(policy) = std::env::var(POLICY) {
        let memory = policy.parse().map_or(Memory::Store, Memory::Recompute);
        return child(memory, batch, iterations);
    }
    println!("batch {batch}, {iterations} iterations with gradient\n            MB before, at the peak, s a step");
    for policy in ["store", "3", "2", "1"] {
        let arguments = [batch.to_string(), iterations.to_string()];
        let program = std::env::current_exe().map_err(|e| Error::io("this program", e))?;
        let output = Command::new(program).args(arguments).env(POLICY, policy).output();
        let output = output.map_err(|e| Error::io("a child", e))?;
        let what = if policy == "store" { policy.to_owned() } else { format!("recompute {policy}") };
        print!("{what:12}{}", String::from_utf8_lossy(&output.stdout));
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
