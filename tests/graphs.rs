//! Recorded networks on a GPU against the same networks call by call, to the last bit.
//!
//! ```sh
//! cargo test --features cuda --test graphs -- --test-threads 1 --nocapture
//! ```

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use candle_core::{DType, Device, Result as Candle, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use fpdm_core::dit::{Architecture, Config, Dit, Fpdit, Labels, Size, init, perturb_gates};
use fpdm_core::{
    Anderson, Broyden, Budget, ImplicitModel, Parameterization, Picard, Problem, Result, Solver, Vp, params, solve,
};
use fpdm_kernels::cuda::{Cuda, Graph, cuda, recordable};
use fpdm_sample::{
    Adaptive, AllocationPolicy, Ddim, Explicit, FixedPointDenoiser, Graphed, Graphs, Guidance, Guided, ImageNoise,
    IterationGuidance, Ledger, Network, Plan, Ramp, Sampler, Spacing, Uniform, WarmStart, Work,
};

/// The one device, for one test at a time: what another thread did meanwhile would be recorded too.
fn device() -> (&'static Device, MutexGuard<'static, ()>) {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    static ONE: Mutex<()> = Mutex::new(());
    let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    (DEVICE.get_or_init(|| cuda(0, Cuda::default()).expect("a GPU")), alone)
}

fn config() -> Config {
    Config {
        input_size: [8, 8],
        hidden_size: 128,
        num_heads: 2,
        labels: Labels::Classes(10),
        ..Config::fpdm(Size::S, 2)
    }
}

fn weights(config: &Config, dtype: DType, device: &Device) -> Result<VarMap> {
    let variables = init(config, 5, dtype, device)?;
    perturb_gates(config, &variables, 6, 0.05)?;
    Ok(variables)
}

fn model(config: &Config, dtype: DType, device: &Device) -> Result<Fpdit> {
    Fpdit::new(config, params::frozen(&weights(config, dtype, device)?)?)
}

/// Latents, times and labels of this call.
fn inputs(config: &Config, batch: usize, call: u64, dtype: DType, device: &Device) -> Result<[Tensor; 3]> {
    let images: Vec<u64> = (0..batch as u64).map(|i| 1000 * call + i).collect();
    let [h, w] = config.input_size;
    let x = ImageNoise::new(1, &images).start((config.in_channels, h, w), DType::F32, device)?.to_dtype(dtype)?;
    let t = Tensor::from_iter((0..batch).map(|i| (37 * call as usize + 101 * i) as f32 % 1000.), &Device::Cpu)?;
    let numbers = |n: usize| (0..n).map(|i| (i as u64 * 7 + call) as u32 % 11);
    let y = match config.labels {
        Labels::Vector(n) => {
            Tensor::from_iter(numbers(batch * n).map(|v| v as f32 * 0.1), &Device::Cpu)?.reshape((batch, n))?
        }
        _ => Tensor::from_iter(numbers(batch), &Device::Cpu)?,
    };
    // Times may be on either side.
    Ok([x, if call.is_multiple_of(2) { t.to_device(device)? } else { t }, y])
}

fn values(t: &Tensor) -> Candle<Vec<f32>> {
    t.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// Solution and readout, still on the device.
fn answer(problem: &Problem, solver: &dyn Solver, budget: usize) -> Result<[Tensor; 2]> {
    let z = solve(solver, &*problem.frozen, problem.z0.clone(), &mut Budget(budget))?.z;
    let output = problem.readout(&z)?;
    Ok([z, output])
}

/// Fails where a number of one is not that of the other.
fn assert_same(got: &[Tensor], expected: &[Tensor], what: &str) -> Result<()> {
    for (a, b) in got.iter().zip(expected) {
        let (a, b) = (values(a)?, values(b)?);
        let off = a.iter().zip(&b).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        let far = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
        assert_eq!(off, 0, "{what}: {off} of {} numbers differ, by {far} at most", a.len());
        assert!(a.iter().all(|v| v.is_finite()), "{what}: not finite");
    }
    Ok(())
}

#[test]
fn a_thousand_calls_with_changing_everything() -> Result<()> {
    let (device, _alone) = device();
    let solvers: [&dyn Solver; 4] =
        [&Picard::default(), &Picard { damp: 0.3 }, &Anderson { memory: 3, ..Default::default() }, &Broyden::default()];
    let vectors = Config { labels: Labels::Vector(7), group: 2, post_depth: 0, ..config() };
    let none = Config { labels: Labels::None, pre_post_timestep_conditioning: true, ..config() };
    for (config, dtype, calls) in [
        (config(), DType::BF16, 1000u64),
        (config(), DType::F32, 300),
        (config(), DType::F16, 60),
        (vectors, DType::BF16, 60),
        (none, DType::F32, 60),
    ] {
        let variables = weights(&config, dtype, device)?;
        let plain = Fpdit::new(&config, params::frozen(&variables)?)?;
        let graphed = Graphed::new(plain.clone(), Graphs::On);
        for call in 0..calls {
            if call % 100 == 99 {
                perturb_gates(&config, &variables, 100 + call, 0.05)?;
            }
            let batch = [1, 2, 3, 8][(call / 3) as usize % 4];
            let [x, t, y] = inputs(&config, batch, call, dtype, device)?;
            // Mostly plain iteration, as samplers do.
            let solver = solvers[if call % 5 == 4 { call as usize / 5 % 4 } else { 0 }];
            let budget = [6, 1, 4, 2, 20, 5, 16, 17][call as usize % 8];
            let got = answer(&graphed.prepare(&x, &t, &y)?, solver, budget)?;
            let expected = answer(&plain.prepare(&x, &t, &y)?, solver, budget)?;
            assert_same(&got, &expected, &format!("{dtype:?}, call {call}, batch {batch}, budget {budget}"))?;
        }
        let replays = graphed.replays();
        assert!(replays as u64 >= 3 * calls, "{replays} replays in {calls} calls");
        println!("{dtype:?} {:?}: {calls} calls, {replays} replays, the same bits", config.labels);
    }
    Ok(())
}

#[test]
fn problems_alive_at_once_share_nothing() -> Result<()> {
    let (device, _alone) = device();
    let dtype = DType::BF16;
    let plain = model(&config(), dtype, device)?;
    let graphed = Graphed::new(plain.clone(), Graphs::On);
    for round in 0..30 {
        let calls = (0..3)
            .map(|call| inputs(&config(), 2 + call as usize / 2, 10 * round + call, dtype, device))
            .collect::<Result<Vec<_>>>()?;
        let all = |m: &dyn ImplicitModel| calls.iter().map(|[x, t, y]| m.prepare(x, t, y)).collect::<Result<Vec<_>>>();
        let (got, expected) = (all(&graphed)?, all(&plain)?);
        let mut z: Vec<[Tensor; 2]> = got.iter().zip(&expected).map(|(g, e)| [g.z0.clone(), e.z0.clone()]).collect();
        for n in [1, 3, 2] {
            for (i, [a, b]) in z.iter_mut().enumerate() {
                (*a, *b) = (got[i].map.repeat(a, n)?.1, expected[i].frozen.repeat(b, n)?.1);
            }
        }
        for (i, [a, b]) in z.iter().enumerate() {
            let got = [a.clone(), got[i].readout(a)?];
            assert_same(&got, &[b.clone(), expected[i].readout(b)?], &format!("round {round}, problem {i}"))?;
        }
    }
    assert!(graphed.replays() >= 30 * 3 * 5);
    Ok(())
}

#[test]
fn what_was_handed_out_stays() -> Result<()> {
    let (device, _alone) = device();
    let dtype = DType::F32;
    let graphed = Graphed::new(model(&config(), dtype, device)?, Graphs::On);
    let mut kept: Vec<(Tensor, Vec<f32>)> = Vec::new();
    for call in 0..40 {
        let [x, t, y] = inputs(&config(), 2, call, dtype, device)?;
        let problem = graphed.prepare(&x, &t, &y)?;
        let (point, image) = problem.frozen.repeat(&problem.z0, 3)?;
        let once = problem.map.apply(&image)?;
        let rows = problem.frozen.rows(&[1])?.expect("can be cut");
        let row = rows.apply(&once.narrow(0, 1, 1)?)?;
        let output = problem.readout(&once)?;
        for t in [&problem.z0, &point, &image, &once, &row, &output] {
            kept.push((t.clone(), values(t)?));
        }
        drop(problem);
        let [x, t, y] = inputs(&config(), 2, call + 500, dtype, device)?;
        graphed.prepare(&x, &t, &y)?.map.apply(&once)?;
        assert_eq!(values(&rows.apply(&once.narrow(0, 1, 1)?)?)?, values(&row)?, "a cut map outlives its problem");
    }
    for (i, (tensor, then)) in kept.iter().enumerate() {
        assert_eq!(values(tensor)?, *then, "tensor {i}");
    }
    Ok(())
}

/// Latents at the end of a trajectory, and applications spent.
fn trajectory(
    model: &dyn ImplicitModel,
    (dtype, device): (DType, &Device),
    solver: &dyn Solver,
    (warm, each, beyond): (WarmStart, bool, bool),
) -> Result<(Tensor, Vec<usize>)> {
    let plan = Plan::vp(&Vp::default().zero_terminal_snr()?, Spacing::Published, 6)?;
    let network = Network { model, parameterization: Parameterization::V, dtype, work: Work::MAP };
    let images = [0, 1, 2, 3];
    let branch = |labels: [u32; 4], total: usize| -> Result<FixedPointDenoiser> {
        let y = Tensor::new(&labels, &Device::Cpu)?;
        let ledger = Ledger::new(total, plan.solves(&Ddim::default()))?;
        let mut denoiser = match each {
            false => FixedPointDenoiser::new(network, y, solver, Box::new(Ramp::EARLY), ledger),
            true => {
                let policies = images.map(|_| Box::new(Adaptive::from_threshold(0.02)) as Box<dyn AllocationPolicy>);
                FixedPointDenoiser::per_image(network, y, solver, policies, ledger)
            }
        };
        denoiser.warm_start = warm;
        denoiser.iteration_guidance = beyond.then_some(IterationGuidance { early: 2, scale: 1.5 });
        Ok(denoiser)
    };
    let denoiser = Guided {
        conditional: branch([0, 3, 1, 9], 30)?,
        unconditional: branch([10; 4], 21)?,
        guidance: Guidance { scale: 2., channels: Some(3), interval: (0., 0.9) },
    };
    let mut noise = ImageNoise::new(42, &images);
    let x = noise.start((4, 8, 8), DType::F32, device)?;
    let mut sampler = Sampler::new(&plan, Box::new(Ddim::default()), denoiser, x, Box::new(noise))?;
    let latents = sampler.finish()?;
    Ok((latents, sampler.costs().iter().map(|cost| cost.applications).collect()))
}

#[test]
fn trajectories_are_the_same() -> Result<()> {
    let (device, _alone) = device();
    let solvers: [&dyn Solver; 2] = [&Picard::default(), &Anderson { memory: 3, ..Default::default() }];
    for dtype in [DType::F32, DType::BF16] {
        let plain = model(&config(), dtype, device)?;
        let graphed = Graphed::new(plain.clone(), Graphs::Auto);
        for solver in solvers {
            for warm in [WarmStart::Fresh, WarmStart::Reuse, WarmStart::Blend { keep: 0.7 }, WarmStart::Extrapolate] {
                for (each, beyond) in [(false, false), (false, true), (true, false), (true, true)] {
                    let how = (warm, each, beyond);
                    let (got, spent) = trajectory(&graphed, (dtype, device), solver, how)?;
                    let (expected, planned) = trajectory(&plain, (dtype, device), solver, how)?;
                    assert_same(&[got], &[expected], &format!("{dtype:?} {how:?}"))?;
                    assert_eq!(spent, planned, "{how:?}");
                }
            }
        }
        println!("{dtype:?}: {} replays", graphed.replays());
        assert!(graphed.replays() > 0);
    }
    Ok(())
}

#[test]
fn gradients_go_the_plain_way() -> Result<()> {
    let (device, _alone) = device();
    let variables = weights(&config(), DType::F32, device)?;
    let tracked = Fpdit::new(&config(), VarBuilder::from_varmap(&variables, DType::F32, device))?;
    let [x, t, y] = inputs(&config(), 2, 0, DType::F32, device)?;
    let graphed = Graphed::new(tracked, Graphs::On);
    let problem = graphed.prepare(&x, &t, &y)?;
    let weight = variables.data().lock().unwrap()["block_fixed_point_projection_fc2.weight"].clone();
    assert!(problem.map.apply(&problem.z0)?.sqr()?.sum_all()?.backward()?.get(&weight).is_some());
    assert_eq!(graphed.replays(), 0);

    let plain = Fpdit::new(&config(), params::frozen(&variables)?)?;
    let graphed = Graphed::new(plain.clone(), Graphs::On);
    let gradient = |m: &dyn ImplicitModel| -> Result<Tensor> {
        let problem = m.prepare(&x, &t, &y)?;
        let z = Var::from_tensor(&problem.z0.detach().copy()?)?;
        let loss = problem.readout(&problem.map.apply(&z)?)?.sqr()?.sum_all()?;
        drop(problem);
        let other = m.prepare(&(&x * 2.)?, &t, &y)?;
        other.map.apply(&other.z0)?;
        Ok(loss.backward()?.remove(&z).expect("a gradient"))
    };
    assert_same(&[gradient(&graphed)?], &[gradient(&plain)?], "the gradient at the point")
}

#[test]
fn explicit_networks_are_replayed_too() -> Result<()> {
    let (device, _alone) = device();
    let config =
        Config { architecture: Architecture::Dit, pre_depth: 0, group: 0, post_depth: 0, depth: 2, ..config() };
    let variables = weights(&config, DType::BF16, device)?;
    let network = || -> Result<_> { Ok(Explicit::new(Dit::new(&config, params::frozen(&variables)?)?)) };
    let (plain, graphed) = (network()?, Graphed::new(network()?, Graphs::On));
    for call in 0..40 {
        let [x, t, y] = inputs(&config, 2, call, DType::BF16, device)?;
        let got = answer(&graphed.prepare(&x, &t, &y)?, &Picard::default(), 1)?;
        assert_same(&got, &answer(&plain.prepare(&x, &t, &y)?, &Picard::default(), 1)?, &format!("call {call}"))?;
    }
    assert_eq!(graphed.replays(), 120);
    Ok(())
}

/// A graph outlives the thread that asked for it, and what candle keeps for that thread.
#[test]
fn graphs_cross_threads() -> Result<()> {
    let (device, _alone) = device();
    let plain = model(&config(), DType::BF16, device)?;
    let graphed = Graphed::new(plain.clone(), Graphs::On);
    for call in 0..20 {
        let [x, t, y] = inputs(&config(), 2, call, DType::BF16, device)?;
        let there = || answer(&graphed.prepare(&x, &t, &y)?, &Picard::default(), 4);
        let got = std::thread::scope(|scope| scope.spawn(there).join().expect("no panic"))?;
        assert_same(&got, &answer(&plain.prepare(&x, &t, &y)?, &Picard::default(), 4)?, &format!("call {call}"))?;
    }
    assert_eq!(graphed.replays(), 60);
    Ok(())
}

/// What cannot be recorded is an error, and the device goes on.
#[test]
fn a_failed_recording_leaves_the_device_whole() -> Result<()> {
    let (device, _alone) = device();
    let x = Tensor::ones(1000, DType::F32, device)?;
    for i in 0..4 {
        let work = || {
            let y = (&x * 2.)?;
            // Candle refuses to wait in a recording, the driver spoils it.
            if i % 2 == 0 {
                y.sum_all()?.to_scalar::<f32>()?;
            } else {
                device.synchronize()?;
            }
            Ok(vec![y])
        };
        assert!(Graph::record(device, work).is_err());
        assert!(recordable(device));
        assert_eq!((&x + 1.)?.sum_all()?.to_scalar::<f32>()?, 2000.);
    }
    let graph = Graph::record(device, || Ok(vec![(&x * 3.)?]))?;
    assert_eq!(graph.replay()?[0].sum_all()?.to_scalar::<f32>()?, 3000.);
    Ok(())
}

/// Prints what a step of a sampler takes; asserts nothing about time.
#[test]
fn time_of_a_step() -> Result<()> {
    let (device, _alone) = device();
    let config = Config { input_size: [32, 32], ..config() };
    let plain = model(&config, DType::BF16, device)?;
    for batch in [1, 8] {
        for graphs in [Graphs::Off, Graphs::On] {
            let graphed = Graphed::new(plain.clone(), graphs);
            let [x, t, y] = inputs(&config, batch, 0, DType::BF16, device)?;
            let call = || answer(&graphed.prepare(&x, &t, &y)?, &Picard::default(), 6);
            let network =
                Network { model: &graphed, parameterization: Parameterization::V, dtype: DType::BF16, work: Work::MAP };
            let plan = Plan::vp(&Vp::default().zero_terminal_snr()?, Spacing::Published, 20)?;
            let ledger = Ledger::new(120, plan.solves(&Ddim::default()))?;
            let images: Vec<u64> = (0..batch as u64).collect();
            let sample = || -> Result<f64> {
                let (solver, policy) = (Picard::default(), Box::new(Uniform));
                let denoiser = FixedPointDenoiser::new(network, y.clone(), &solver, policy, ledger.clone());
                let mut noise = ImageNoise::new(42, &images);
                let x = noise.start((4, 32, 32), DType::F32, device)?;
                let mut sampler = Sampler::new(&plan, Box::new(Ddim::default()), denoiser, x, Box::new(noise))?;
                sampler.finish()?;
                Ok(sampler.cost().seconds * 1e3 / plan.steps().len() as f64)
            };
            call()?;
            sample()?;
            device.synchronize()?;
            let begun = Instant::now();
            for _ in 0..50 {
                call()?;
            }
            device.synchronize()?;
            let ms = begun.elapsed().as_secs_f64() * 1e3 / 50.;
            let step = sample()?;
            println!("batch {batch}, graphs {graphs}: 1 + 6 + 1 in {ms:.3} ms, a sampler's step {step:.3} ms");
        }
    }
    Ok(())
}
