//! TAESD at 192×192, batch 4, f32: compare with `benches/pytorch/taesd_decode.py` in the same minute.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use criterion::{Criterion, criterion_group, criterion_main};
use fpdm_vae::{LatentCodec, TinyAutoencoder, TinyConfig};

fn tiny(c: &mut Criterion) {
    let vars = VarMap::new();
    let config = TinyConfig::default();
    let tracked = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let trained = TinyAutoencoder::new(config.clone(), tracked).unwrap();
    let frozen = vars.data().lock().unwrap().iter().map(|(k, v)| (k.clone(), v.as_detached_tensor())).collect();
    let frozen = VarBuilder::from_tensors(frozen, DType::F32, &Device::Cpu);
    let codec = TinyAutoencoder::new(config, frozen).unwrap();
    let z = Tensor::randn(0f32, 1., (4, 4, 24, 24), &Device::Cpu).unwrap();
    let x = Tensor::rand(-1f32, 1., (4, 3, 192, 192), &Device::Cpu).unwrap();
    c.bench_function("tiny decode 4x192x192", |b| b.iter(|| codec.decode(&z).unwrap()));
    c.bench_function("tiny encode 4x192x192", |b| b.iter(|| codec.encode(&x).unwrap()));
    let small =
        Var::from_tensor(&z.narrow(0, 0, 1).unwrap().narrow(2, 0, 8).unwrap().narrow(3, 0, 8).unwrap()).unwrap();
    c.bench_function("tiny decode 1x64x64 with gradients", |b| {
        b.iter(|| trained.decode(&small).unwrap().sqr().unwrap().mean_all().unwrap().backward().unwrap())
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(15);
    targets = tiny
}
criterion_main!(benches);
