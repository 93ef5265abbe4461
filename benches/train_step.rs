//! One training step with stored and with recomputed graphs.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use criterion::{Criterion, criterion_group, criterion_main};
use fpdm_core::dit::{Config, Fpdit, Labels, Size, init};
use fpdm_core::rng::{Stream, normal_batch};
use fpdm_core::{Moments, Result};
use fpdm_train::{Batch, DataSource, Memory, MultiStepJfb, Objective, Settings, Trainer};

struct Noise;

impl DataSource for Noise {
    fn batch(&self, index: u64, size: usize) -> Result<Batch> {
        let positions: Vec<u64> = (index * size as u64..(index + 1) * size as u64).collect();
        let mean = normal_batch(0, Stream::Data, &positions, (4, 8, 8), DType::F32, &Device::Cpu)?;
        let moments = Moments { std: mean.zeros_like()?, mean };
        Ok(Batch { moments, y: Tensor::zeros(size, DType::U32, &Device::Cpu)?, positions })
    }
}

fn trainer(memory: Memory) -> Result<Trainer<Fpdit>> {
    let config = Config {
        input_size: [8, 8],
        hidden_size: 128,
        num_heads: 4,
        labels: Labels::Classes(1),
        ..Config::fpdm(Size::S, 2)
    };
    let weights = init(&config, 0, DType::F32, &Device::Cpu)?;
    let model = Fpdit::new(&config, VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu))?;
    let estimator = MultiStepJfb { memory, ..Default::default() };
    let settings = Settings { batch_size: 4, ..Default::default() };
    let objective = Objective::published()?;
    Trainer::new(model, config.labels, &weights, objective, Box::new(estimator), settings, serde_json::json!({}))
}

fn step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("train_step");
    group.sample_size(10);
    for (name, memory) in [("store", Memory::Store), ("recompute 2", Memory::Recompute(2))] {
        let mut run = trainer(memory).expect("the settings are valid");
        group.bench_function(name, |b| b.iter(|| run.step(&Noise).expect("the step is finite")));
    }
    group.finish();
}

criterion_group!(benches, step);
criterion_main!(benches);
