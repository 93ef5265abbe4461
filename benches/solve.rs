//! What a solver costs on top of the map: one solve per solver, all with the same number of applications.

use candle_core::{DType, Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fpdm_core::rng::{self, Stream};
use fpdm_core::{Anderson, Broyden, Budget, Picard, Result, Solver, Tolerance, solve};

const BUDGET: usize = 12;

fn solves(c: &mut Criterion) {
    let device = Device::Cpu;
    let (b, t, d) = (4, 64, 128);
    let weights = rng::normal((d, d), &mut rng::stream(0, Stream::Init, 0), DType::F32, &device).expect("weights");
    let weights = (weights * (0.4 / (d as f64).sqrt())).expect("weights");
    let f = move |z: &Tensor| -> Result<Tensor> { Ok((z.broadcast_matmul(&weights)?.tanh()? + 0.1)?) };
    let z0 = rng::normal((b, t, d), &mut rng::stream(0, Stream::Noise, 0), DType::F32, &device).expect("noise");

    let solvers: [(&str, &dyn Solver); 4] = [
        ("picard", &Picard::default()),
        ("damped_picard", &Picard { damp: 0.3 }),
        ("anderson", &Anderson::default()),
        ("broyden", &Broyden::default()),
    ];
    let mut group = c.benchmark_group("solve");
    group.throughput(Throughput::Elements(BUDGET as u64));
    for (name, solver) in solvers {
        group.bench_function(BenchmarkId::new(name, BUDGET), |bench| {
            bench.iter(|| solve(solver, &f, z0.clone(), &mut Budget(BUDGET)).expect("a solve"))
        });
    }
    group.bench_function(BenchmarkId::new("picard_measured", BUDGET), |bench| {
        let never = Tolerance { abs: 0., rel: 0., every: 1 };
        bench.iter(|| solve(&Picard::default(), &f, z0.clone(), &mut (Budget(BUDGET), never)).expect("a solve"))
    });
    group.finish();
}

criterion_group!(benches, solves);
criterion_main!(benches);
