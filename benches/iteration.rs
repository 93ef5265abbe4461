//! One application of the fixed point map: S/2, f32, batch 8, 256 tokens, on the CPU.
//!
//! `docs/performance.md` has the command that runs PyTorch's side in the same minute; the ratio of the two is what
//! counts.

use std::hint::black_box;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use criterion::{Criterion, criterion_group, criterion_main};
use fpdm_core::dit::{Config, Fpdit, Size, init, perturb_gates};
use fpdm_core::{ImplicitModel, Problem};

const BATCH: usize = 8;

fn problem() -> fpdm_core::Result<Problem> {
    let config = Config::fpdm(Size::S, 2);
    let device = Device::Cpu;
    let variables = init(&config, 0, DType::F32, &device)?;
    perturb_gates(&config, &variables, 1, 0.02)?;
    let model = Fpdit::new(&config, VarBuilder::from_varmap(&variables, DType::F32, &device))?;
    let [h, w] = config.input_size;
    let x = Tensor::arange(0f32, (BATCH * config.in_channels * h * w) as f32, &device)?.sin()?;
    let x = x.reshape((BATCH, config.in_channels, h, w))?;
    let t = Tensor::full(500f32, BATCH, &device)?;
    let y = Tensor::full(1000u32, BATCH, &device)?;
    model.prepare(&x, &t, &y)
}

fn iteration(c: &mut Criterion) {
    let problem = problem().expect("a problem of fixed shape");
    let mut group = c.benchmark_group("iteration");
    group.sample_size(30);
    group.bench_function("frozen/S2/batch8", |b| b.iter(|| problem.frozen.apply(black_box(&problem.z0)).unwrap()));
    group.bench_function("tracked/S2/batch8", |b| b.iter(|| problem.map.apply(black_box(&problem.z0)).unwrap()));
    group.bench_function("readout/S2/batch8", |b| b.iter(|| problem.readout(black_box(&problem.z0)).unwrap()));
    group.finish();
}

criterion_group!(benches, iteration);
criterion_main!(benches);
