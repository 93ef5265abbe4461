//! On a stand-in for a GPU, which overwrites the same memory at every replay as a GPU does.

use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Device, Result as Candle, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use fpdm_core::dit::{Architecture, Config, Dit, Fpdit, Labels, Size, init, perturb_gates};
use fpdm_core::{
    Anderson, Broyden, Budget, FixedPointMap, ImplicitModel, Parameterization, Picard, Problem, Result, Solver, Vp,
    params, solve,
};

use super::recorder::{Replay, Work, own, set};
use super::*;
use crate::{
    Adaptive, AllocationPolicy, Ddim, Explicit, FixedPointDenoiser, Guidance, Guided, ImageNoise, IterationGuidance,
    Ledger, Network, Plan, Ramp, Sampler, Spacing, WarmStart, Work as Cost,
};

const CPU: Device = Device::Cpu;
static REFUSING: AtomicBool = AtomicBool::new(true);

/// Refuses to record while its flag is up.
struct Fake(&'static AtomicBool);

struct Again {
    work: Work,
    outputs: Vec<Tensor>,
}

impl Recorder for Fake {
    fn fits(&self, device: &Device) -> bool {
        device.is_cpu()
    }

    fn settings(&self) -> u8 {
        0
    }

    fn record(&self, _: &Device, work: Work) -> Candle<Box<dyn Replay>> {
        if self.0.load(Ordering::Relaxed) {
            candle_core::bail!("refused")
        }
        let outputs = work()?.iter().map(own).collect::<Candle<_>>()?;
        Ok(Box::new(Again { work, outputs }))
    }
}

impl Replay for Again {
    fn outputs(&self) -> &[Tensor] {
        &self.outputs
    }

    fn replay(&self) -> Candle<()> {
        let found = (self.work)()?;
        self.outputs.iter().zip(&found).try_for_each(|(to, from)| set(to, from))
    }
}

fn recorded<M: ImplicitModel>(model: M) -> Graphed<M> {
    static NEVER: AtomicBool = AtomicBool::new(false);
    Graphed::with(model, Graphs::Auto, Box::new(Fake(&NEVER)))
}

fn config() -> Config {
    Config { input_size: [4, 4], hidden_size: 16, num_heads: 2, labels: Labels::Classes(5), ..Config::fpdm(Size::S, 2) }
}

fn weights(config: &Config) -> VarMap {
    let variables = init(config, 5, DType::F32, &CPU).unwrap();
    perturb_gates(config, &variables, 6, 0.05).unwrap();
    variables
}

fn model(config: &Config) -> Fpdit {
    Fpdit::new(config, params::frozen(&weights(config)).unwrap()).unwrap()
}

/// Latents, times and labels of this call.
fn inputs(config: &Config, batch: usize, call: u64) -> Result<[Tensor; 3]> {
    let images: Vec<u64> = (0..batch as u64).map(|i| 100 * call + i).collect();
    let [h, w] = config.input_size;
    let x = ImageNoise::new(1, &images).start((config.in_channels, h, w), DType::F32, &CPU)?;
    let t = Tensor::from_iter((0..batch).map(|i| (37 * call as usize + 101 * i) as f32 % 1000.), &CPU)?;
    let y = match config.labels {
        Labels::Vector(n) => {
            Tensor::from_iter((0..batch * n).map(|i| (i + call as usize) as f32 * 0.1), &CPU)?.reshape((batch, n))?
        }
        _ => Tensor::from_iter((0..batch).map(|i| (i as u32 + call as u32) % 6), &CPU)?,
    };
    Ok([x, t, y])
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().and_then(|t| t.to_vec1()).unwrap()
}

/// Solution and readout.
fn answer(problem: &Problem, solver: &dyn Solver, budget: usize) -> Result<[Vec<f32>; 2]> {
    let z = solve(solver, &*problem.frozen, problem.z0.clone(), &mut Budget(budget))?.z;
    Ok([values(&z), values(&problem.readout(&z)?)])
}

#[test]
fn replays_are_plain_calls() -> Result<()> {
    let vectors = Config { labels: Labels::Vector(3), group: 2, post_depth: 0, ..config() };
    let none = Config { labels: Labels::None, pre_post_timestep_conditioning: true, ..config() };
    let solvers: [&dyn Solver; 4] =
        [&Picard::default(), &Picard { damp: 0.3 }, &Anderson::default(), &Broyden::default()];
    for config in [config(), vectors, none] {
        let plain = model(&config);
        let graphed = recorded(plain.clone());
        for call in 0..24u64 {
            let batch = 1 + call as usize % 3;
            let [x, t, y] = inputs(&config, batch, call)?;
            let (solver, budget) = (solvers[call as usize % 4], [1, 3, 20, 7, 0, 33][call as usize / 4 % 6]);
            let got = answer(&graphed.prepare(&x, &t, &y)?, solver, budget)?;
            assert!(got == answer(&plain.prepare(&x, &t, &y)?, solver, budget)?, "call {call}");
        }
        assert!(graphed.replays() > 48, "{}", graphed.replays());
        assert_eq!(graphed.pool.idle(), 3, "one a batch size");
    }
    Ok(())
}

#[test]
fn problems_alive_at_once_share_nothing() -> Result<()> {
    let plain = model(&config());
    let graphed = recorded(plain.clone());
    let calls = (0..3).map(|call| inputs(&config(), 2, call)).collect::<Result<Vec<_>>>()?;
    let all = |m: &dyn ImplicitModel| calls.iter().map(|[x, t, y]| m.prepare(x, t, y)).collect::<Result<Vec<_>>>();
    let (got, expected) = (all(&graphed)?, all(&plain)?);
    let mut z: Vec<[Tensor; 2]> = got.iter().zip(&expected).map(|(g, e)| [g.z0.clone(), e.z0.clone()]).collect();
    for _ in 0..4 {
        for (i, [a, b]) in z.iter_mut().enumerate() {
            (*a, *b) = (got[i].map.apply(a)?, expected[i].frozen.repeat(b, 1)?.1);
        }
    }
    for (i, [a, b]) in z.iter().enumerate() {
        assert_eq!(values(&got[i].readout(a)?), values(&expected[i].readout(b)?), "problem {i}");
    }
    assert_eq!(graphed.pool.idle(), 0);
    // A map alone keeps what it needs.
    let map = got[1].map.clone();
    drop(got);
    assert_eq!(graphed.pool.idle(), 2);
    let [x, t, y] = &calls[0];
    let others = [graphed.prepare(x, t, y)?, graphed.prepare(x, t, y)?, graphed.prepare(x, t, y)?];
    assert_eq!(values(&map.apply(&z[1][0])?), values(&expected[1].map.apply(&z[1][1])?));
    drop((map, others));
    assert_eq!(graphed.pool.idle(), 4);
    for batch in 1..20 {
        let [x, t, y] = inputs(&config(), batch, 0)?;
        graphed.prepare(&x, &t, &y)?;
    }
    assert_eq!(graphed.pool.idle(), 8, "bounded");
    Ok(())
}

#[test]
fn what_was_handed_out_stays() -> Result<()> {
    let graphed = recorded(model(&config()));
    let mut kept: Vec<(Tensor, Vec<f32>)> = Vec::new();
    for call in 0..6 {
        let [x, t, y] = inputs(&config(), 2, call)?;
        let problem = graphed.prepare(&x, &t, &y)?;
        let (point, image) = problem.frozen.repeat(&problem.z0, 3)?;
        let (_, last) = problem.frozen.repeat(&image, 18)?;
        let once = problem.map.apply(&last)?;
        let rows = problem.frozen.rows(&[1])?.expect("can be cut");
        let row = rows.apply(&once.narrow(0, 1, 1)?)?;
        let output = problem.readout(&once)?;
        for t in [&problem.z0, &point, &image, &last, &once, &row, &output] {
            kept.push((t.clone(), values(t)));
        }
        // An empty solve hands the start itself on.
        let start = solve(&Picard::default(), &*problem.frozen, problem.z0.clone(), &mut Budget(0))?.z;
        kept.push((start.clone(), values(&start)));
        // A cut map outlives its problem.
        drop(problem);
        let [x, t, y] = inputs(&config(), 2, call + 50)?;
        graphed.prepare(&x, &t, &y)?.map.apply(&once)?;
        assert_eq!(values(&rows.apply(&once.narrow(0, 1, 1)?)?), values(&row));
    }
    assert!(kept.iter().all(|(tensor, then)| values(tensor) == *then));
    Ok(())
}

#[test]
fn weights_are_read_where_they_lie() -> Result<()> {
    let variables = weights(&config());
    let plain = Fpdit::new(&config(), params::frozen(&variables)?)?;
    let graphed = recorded(plain.clone());
    for call in 0..4 {
        let [x, t, y] = inputs(&config(), 1, 0)?;
        let solver = Picard::default();
        let got = answer(&graphed.prepare(&x, &t, &y)?, &solver, 4)?;
        assert!(got == answer(&plain.prepare(&x, &t, &y)?, &solver, 4)?, "change {call}");
        perturb_gates(&config(), &variables, 100 + call, 0.1)?;
        let changed = answer(&plain.prepare(&x, &t, &y)?, &solver, 4)?;
        assert!(got != changed, "the weights did change");
    }
    Ok(())
}

#[test]
fn tracked_tensors_go_the_plain_way() -> Result<()> {
    let variables = weights(&config());
    let tracked = Fpdit::new(&config(), VarBuilder::from_varmap(&variables, DType::F32, &CPU))?;
    let [x, t, y] = inputs(&config(), 2, 0)?;
    let graphed = recorded(tracked);
    let problem = graphed.prepare(&x, &t, &y)?;
    let weight = variables.data().lock().unwrap()["block_fixed_point_projection_fc2.weight"].clone();
    assert!(problem.map.apply(&problem.z0)?.sqr()?.sum_all()?.backward()?.get(&weight).is_some());
    assert_eq!(graphed.replays(), 0);

    let plain = model(&config());
    let graphed = recorded(plain.clone());
    let gradient = |m: &dyn ImplicitModel, x: &Tensor| -> Result<Vec<f32>> {
        let problem = m.prepare(x, &t, &y)?;
        let z = Var::from_tensor(&problem.z0.detach().copy()?)?;
        assert!(!problem.frozen.repeat(&z, 2)?.1.track_op());
        let loss = problem.readout(&problem.map.apply(&z)?)?.sqr()?.sum_all()?;
        // The way back is taken when the slot has long been another problem's.
        drop(problem);
        let other = m.prepare(&(x * 2.)?, &t, &y)?;
        other.map.apply(&other.z0)?;
        Ok(values(loss.backward()?.get(&z).expect("a gradient")))
    };
    assert_eq!(gradient(&graphed, &x)?, gradient(&plain, &x)?);
    let x = Var::from_tensor(&x)?;
    let problem = graphed.prepare(x.as_tensor(), &t, &y)?;
    assert!(problem.map.apply(&problem.z0)?.sum_all()?.backward()?.get(&x).is_some(), "through the injection");
    Ok(())
}

#[test]
fn what_cannot_be_recorded_is_computed() -> Result<()> {
    let plain = model(&config());
    let [x, t, y] = inputs(&config(), 2, 3)?;
    let solver = Picard::default();
    let expected = answer(&plain.prepare(&x, &t, &y)?, &solver, 5)?;
    let same = |graphed: &Graphed<Fpdit>| -> Result<bool> {
        Ok(answer(&graphed.prepare(&x, &t, &y)?, &solver, 5)? == expected)
    };
    let off = Graphed::with(plain.clone(), Graphs::Off, Box::new(Fake(&REFUSING)));
    let refused = Graphed::with(plain.clone(), Graphs::On, Box::new(Fake(&REFUSING)));
    let large = Graphed { pool: Arc::new(Pool::new(Box::new(Fake(&REFUSING)), 1)), ..recorded(plain.clone()) };
    let here = Graphed::new(plain.clone(), Graphs::On);
    for graphed in [&off, &refused, &large, &here] {
        assert!(same(graphed)?);
        assert_eq!(graphed.replays(), 0);
    }
    // Refused halfway: the problem began, its applications cannot be recorded.
    static LATER: AtomicBool = AtomicBool::new(false);
    let graphed = Graphed::with(plain.clone(), Graphs::Auto, Box::new(Fake(&LATER)));
    let problem = graphed.prepare(&x, &t, &y)?;
    LATER.store(true, Ordering::Relaxed);
    assert!(answer(&problem, &solver, 5)? == expected);
    assert_eq!(graphed.replays(), 1);

    // Other points than those that were recorded for.
    let graphed = recorded(plain.clone());
    let (got, plainly) = (graphed.prepare(&x, &t, &y)?, plain.prepare(&x, &t, &y)?);
    let wrong = Tensor::zeros((1, 1, 16), DType::F32, &CPU)?;
    let error = |problem: &Problem| problem.map.apply(&wrong).unwrap_err().to_string();
    assert_eq!(error(&got).lines().next(), error(&plainly).lines().next());
    for (x, t, y) in [
        (x.narrow(2, 0, 2)?, t.clone(), y.clone()),
        (x.clone(), t.narrow(0, 0, 1)?, y.clone()),
        (x.clone(), t.clone(), Tensor::new(&[0u32, 6], &CPU)?),
        (x.clone(), t.clone(), Tensor::new(&[0f32, 1.], &CPU)?),
    ] {
        let error = |m: &dyn ImplicitModel| m.prepare(&x, &t, &y).err().expect("an error").to_string();
        assert_eq!(error(&graphed), error(&plain));
    }
    for text in ["auto", "on", "off"] {
        assert_eq!(text.parse::<Graphs>()?.to_string(), text);
    }
    assert!("maybe".parse::<Graphs>().unwrap_err().to_string().contains("auto, on, off"));
    Ok(())
}

/// Latents at the end of a trajectory, applications spent, and the last solution.
fn trajectory(
    model: &dyn ImplicitModel,
    solver: &dyn Solver,
    (warm, each, beyond): (WarmStart, bool, bool),
) -> Result<(Vec<f32>, Vec<usize>)> {
    let plan = Plan::vp(&Vp::default().zero_terminal_snr()?, Spacing::Published, 5)?;
    let network = Network { model, parameterization: Parameterization::V, dtype: DType::F32, work: Cost::MAP };
    let images = [0, 1, 2];
    let branch = |labels: [u32; 3], total: usize| -> Result<FixedPointDenoiser> {
        let (y, ledger) = (Tensor::new(&labels, &CPU)?, Ledger::new(total, plan.solves(&Ddim::default()))?);
        let mut denoiser = match each {
            false => FixedPointDenoiser::new(network, y, solver, Box::new(Ramp::EARLY), ledger),
            true => {
                let policy = || Box::new(Adaptive::from_threshold(0.02)) as Box<dyn AllocationPolicy>;
                FixedPointDenoiser::per_image(network, y, solver, [policy(), policy(), policy()], ledger)
            }
        };
        denoiser.warm_start = warm;
        denoiser.iteration_guidance = beyond.then_some(IterationGuidance { early: 2, scale: 1.5 });
        Ok(denoiser)
    };
    let denoiser = Guided {
        conditional: branch([0, 3, 1], 23)?,
        unconditional: branch([5; 3], 17)?,
        guidance: Guidance { scale: 2., channels: Some(3), interval: (0., 0.9) },
    };
    let mut noise = ImageNoise::new(42, &images);
    let x = noise.start((4, 4, 4), DType::F32, &CPU)?;
    let mut sampler = Sampler::new(&plan, Box::new(Ddim::default()), denoiser, x, Box::new(noise))?;
    let latents = values(&sampler.finish()?);
    Ok((latents, sampler.costs().iter().map(|cost| cost.applications).collect()))
}

#[test]
fn trajectories_are_the_same() -> Result<()> {
    let plain = model(&config());
    let graphed = recorded(plain.clone());
    let solvers: [&dyn Solver; 2] = [&Picard::default(), &Anderson { memory: 3, ..Default::default() }];
    for solver in solvers {
        for warm in [WarmStart::Fresh, WarmStart::Reuse, WarmStart::Blend { keep: 0.7 }, WarmStart::Extrapolate] {
            for (each, beyond) in [(false, false), (false, true), (true, false), (true, true)] {
                let how = (warm, each, beyond);
                assert!(trajectory(&graphed, solver, how)? == trajectory(&plain, solver, how)?, "{how:?}");
            }
        }
    }
    assert!(graphed.replays() > 0);
    Ok(())
}

#[test]
fn explicit_networks_are_replayed_too() -> Result<()> {
    let config =
        Config { architecture: Architecture::Dit, pre_depth: 0, group: 0, post_depth: 0, depth: 2, ..config() };
    let network = || -> Result<_> { Ok(Explicit::new(Dit::new(&config, params::frozen(&weights(&config))?)?)) };
    let (plain, graphed) = (network()?, recorded(network()?));
    for call in 0..6 {
        let [x, t, y] = inputs(&config, 2, call)?;
        let solver = Picard::default();
        assert!(
            answer(&graphed.prepare(&x, &t, &y)?, &solver, 1)? == answer(&plain.prepare(&x, &t, &y)?, &solver, 1)?,
            "call {call}"
        );
    }
    assert_eq!(graphed.replays(), 18);

    let variables = weights(&config);
    let tracked = Dit::new(&config, VarBuilder::from_varmap(&variables, DType::F32, &CPU))?;
    let graphed = recorded(Explicit::new(tracked));
    let [x, t, y] = inputs(&config, 2, 0)?;
    let problem = graphed.prepare(&x, &t, &y)?;
    let weight = variables.data().lock().unwrap()["blocks.0.mlp.fc1.weight"].clone();
    assert!(problem.map.apply(&problem.z0)?.sum_all()?.backward()?.get(&weight).is_some());
    assert_eq!(graphed.replays(), 0);
    Ok(())
}

/// What a map does at once counts as what it is.
struct Leaps(std::sync::Mutex<Vec<usize>>);

impl FixedPointMap for Leaps {
    fn apply(&self, z: &Tensor) -> Result<Tensor> {
        Ok((z * 0.5)?)
    }

    fn repeat(&self, z: &Tensor, n: usize) -> Result<(Tensor, Tensor)> {
        self.0.lock().unwrap().push(n);
        let point = (z * 0.5f64.powi(n as i32 - 1))?;
        Ok((point.clone(), self.apply(&point)?))
    }
}

#[test]
fn a_denoiser_leaps_to_where_it_looks() -> Result<()> {
    struct Toy(Arc<Leaps>);
    impl ImplicitModel for Toy {
        fn prepare(&self, x: &Tensor, _: &Tensor, _: &Tensor) -> Result<Problem> {
            Ok(Problem::new(self.0.clone(), x.clone(), |z| Ok(z.clone())).with_frozen(self.0.clone()))
        }
    }
    let toy = Toy(Arc::new(Leaps(Default::default())));
    let plan = Plan::vp(&Vp::default(), Spacing::Trailing, 1)?;
    let leaps = |early: Option<usize>, solver: &dyn Solver| -> Result<(Vec<usize>, usize)> {
        let network =
            Network { model: &toy, parameterization: Parameterization::Eps, dtype: DType::F32, work: Cost::MAP };
        let y = Tensor::zeros(1, DType::U32, &CPU)?;
        let policy = Box::new(crate::Uniform);
        let mut denoiser = FixedPointDenoiser::new(network, y, solver, policy, Ledger::new(7, 1)?);
        denoiser.iteration_guidance = early.map(|early| IterationGuidance { early, scale: 2. });
        let x = Tensor::ones((1, 1, 2, 2), DType::F32, &CPU)?;
        let noise = Box::new(ImageNoise::new(0, &[0]));
        let mut sampler = Sampler::new(&plan, Box::new(Ddim::default()), denoiser, x, noise)?;
        sampler.finish()?;
        Ok((std::mem::take(&mut *toy.0.0.lock().unwrap()), sampler.cost().applications))
    };
    let picard = Picard::default();
    assert_eq!(leaps(None, &picard)?, (vec![7], 7));
    assert_eq!(leaps(Some(2), &picard)?, (vec![2, 5], 7));
    assert_eq!(leaps(Some(7), &picard)?, (vec![7], 7), "nothing comes after it");
    assert_eq!(leaps(None, &Picard { damp: 0.5 })?, (vec![], 7), "who looks at every image leaps over none");
    Ok(())
}
