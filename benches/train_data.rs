//! What a step asks of the host: a batch of latents, and its noise.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use fpdm_core::dit::{Config, Fpdit, Labels, Size, init};
use fpdm_core::{Moments, Normalisation, Result};
use fpdm_train::{
    DataSource, LatentIndex, LatentShard, LatentShards, MultiStepJfb, Normalised, Objective, Recipe, Settings, Trainer,
};

const SAMPLES: usize = 2048;
const BATCH: usize = 256;

/// Latents of 24×24×4 without a deviation, as TAESD has them.
fn shards(folder: &std::path::Path) -> Result<LatentShards> {
    let wave = Tensor::arange(0f32, (SAMPLES * 2304) as f32, &Device::Cpu)?.sin()?.reshape((SAMPLES, 4, 24, 24))?;
    let moments = || -> Result<Moments> { Ok(Moments { mean: wave.clone(), std: wave.zeros_like()? }) };
    let mut index = LatentIndex {
        codec: "none".into(),
        source: "a wave".into(),
        images: SAMPLES,
        classes: vec!["all".into()],
        shards: Vec::new(),
        skipped: Default::default(),
    };
    let shard = LatentShard { upright: moments()?, flipped: moments()?, classes: vec![0; SAMPLES] };
    index.append(folder, &shard, SAMPLES)?;
    LatentShards::open(folder, 0, &Device::Cpu)?.into_memory()
}

fn recipe() -> Result<Recipe> {
    let config = Config {
        input_size: [24, 24],
        hidden_size: 16,
        num_heads: 2,
        labels: Labels::Classes(1),
        ..Config::fpdm(Size::S, 2)
    };
    let weights = init(&config, 0, DType::F32, &Device::Cpu)?;
    let model = Fpdit::new(&config, VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu))?;
    let settings = Settings { batch_size: BATCH, ..Default::default() };
    let estimator = Box::new(MultiStepJfb::default());
    let nothing = serde_json::json!({});
    Ok(Trainer::new(model, config.labels, &weights, Objective::flow(), estimator, settings, nothing)?.recipe())
}

fn host(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder for the shards");
    let data = shards(folder.path()).expect("the shards are whole");
    let by = Normalisation { mean: vec![0.], std: vec![0.851] };
    let recipe = recipe().expect("the settings are valid");
    let mut group = criterion.benchmark_group("train_data 256×4×24×24");
    group.sample_size(30);
    let mut index = 0u64;
    let mut next = move || {
        index += 1;
        index
    };
    group.bench_function("batch", |b| b.iter_batched(&mut next, |i| data.batch(i, BATCH), BatchSize::SmallInput));
    let data = Normalised::new(data, by).expect("a deviation above 0");
    group.bench_function("batch, normalised", |b| {
        b.iter_batched(&mut next, |i| data.batch(i, BATCH), BatchSize::SmallInput)
    });
    group.bench_function("batch, normalised, with noise", |b| {
        b.iter_batched(&mut next, |i| recipe.pairs(&data, i), BatchSize::SmallInput)
    });
    group.finish();
}

criterion_group!(benches, host);
criterion_main!(benches);
