//! Sampling where the answer is known: Gaussian data, and an implicit layer that relaxes to the true noise at a known
//! rate.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use fpdm_core::rng::{self, Stream};
use fpdm_core::{Flow, ImplicitModel, Level, NoiseSchedule, Parameterization, Picard, Problem, Result, Vp};
use fpdm_sample::{
    Adaptive, AllocationPolicy, Cost, Ddim, DpmSolver, FixedPointDenoiser, FlowHeun, Guidance, Guided, Heun,
    IterationGuidance, Ledger, Network, Plan, Ramp, Sampler, Spacing, StepRule, UniPc, Uniform, WarmStart, Work,
};

/// Data of this mean and deviation.
const MEAN: f64 = 0.7;
const STD: f64 = 2.;

/// `f(z) = eps* + rate·(z − eps*)` from 0, for the noise `eps*` that is expected at `x`.
struct Toy<S> {
    schedule: S,
    rate: f64,
}

impl<S: NoiseSchedule> ImplicitModel for Toy<S> {
    fn prepare(&self, x: &Tensor, t: &Tensor, y: &Tensor) -> Result<Problem> {
        let Level { alpha, sigma, .. } = self.schedule.level(t.to_dtype(DType::F64)?.to_vec1::<f64>()?[0])?;
        // Label 1 is a shifted mean.
        let mean = (y.to_dtype(DType::F64)?.reshape(((), 1, 1, 1))? + MEAN)?;
        let eps = (x.broadcast_sub(&(mean * alpha)?)? * (sigma / ((alpha * STD).powi(2) + sigma * sigma)))?;
        let (z0, rate) = (eps.zeros_like()?, self.rate);
        let map = move |z: &Tensor| -> Result<Tensor> { Ok(((z * rate)? + (&eps * (1. - rate))?)?) };
        Ok(Problem::new(Arc::new(map), z0, |z| Ok(z.clone())))
    }
}

/// Where the probability flow from `x` at `from` ends, for data of mean `mean`.
fn exact(x: &Tensor, from: Level, mean: f64) -> Tensor {
    let spread = ((from.alpha * STD).powi(2) + from.sigma * from.sigma).sqrt();
    ((x - from.alpha * mean).unwrap() * (STD / spread)).unwrap().affine(1., mean).unwrap()
}

fn start() -> Tensor {
    rng::normal_batch(3, Stream::Noise, &[0, 1, 2, 3], (2, 3, 3), DType::F64, &Device::Cpu).unwrap()
}

fn worst(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

struct Setting<'a> {
    model: &'a dyn ImplicitModel,
    plan: &'a Plan,
    warm_start: WarmStart,
    iteration_guidance: Option<IterationGuidance>,
    total: usize,
}

impl Setting<'_> {
    fn branch(&self, label: u32, solves: usize, policy: Box<dyn AllocationPolicy>) -> FixedPointDenoiser<'_> {
        let network =
            Network { model: self.model, parameterization: Parameterization::Eps, dtype: DType::F64, work: Work::MAP };
        let labels = Tensor::full(label, 4, &Device::Cpu).unwrap();
        let ledger = Ledger::new(self.total, solves).unwrap();
        let mut denoiser = FixedPointDenoiser::new(network, labels, &Picard { damp: 0. }, policy, ledger);
        denoiser.warm_start = self.warm_start;
        denoiser.iteration_guidance = self.iteration_guidance;
        denoiser
    }

    fn run(&self, rule: Box<dyn StepRule>, policy: Box<dyn AllocationPolicy>) -> (Tensor, Cost) {
        let denoiser = self.branch(0, self.plan.solves(&*rule), policy);
        let noise = |_: &Tensor| -> Result<Tensor> { panic!("a deterministic rule asks for no noise") };
        let mut sampler = Sampler::new(self.plan, rule, denoiser, start(), Box::new(noise)).unwrap();
        (sampler.finish().unwrap(), sampler.cost())
    }
}

#[test]
fn heun_with_converged_solves_is_exact() {
    let schedule = Vp::default();
    let plan = Plan::vp(&schedule, Spacing::Published, 1000).unwrap();
    let model = Toy { schedule, rate: 0.25 };
    let setting = Setting {
        model: &model,
        plan: &plan,
        warm_start: WarmStart::Fresh,
        iteration_guidance: None,
        total: 1999 * 20,
    };
    let (x, cost) = setting.run(Box::new(Heun), Box::new(Uniform));
    let error = worst(&x, &exact(&start(), plan.steps()[0].from, MEAN));
    println!("Heun, converged: {error:e}");
    assert!(error <= 1e-4, "{error:e}");
    assert_eq!((cost.solves, cost.applications), (1999, 1999 * 20));
    assert!(cost.records.iter().all(|r| r.residual < 1e-8));
}

#[test]
fn flow_heun_is_exact_on_the_straight_path() {
    let plan = Plan::flow(&Flow::default(), Spacing::Trailing, 500).unwrap();
    let model = Toy { schedule: Flow::default(), rate: 0. };
    let setting =
        Setting { model: &model, plan: &plan, warm_start: WarmStart::Fresh, iteration_guidance: None, total: 999 };
    let network =
        Network { model: &model, parameterization: Parameterization::Eps, dtype: DType::F64, work: Work::MAP };
    assert!(network.check(&plan).is_err(), "eps says nothing on pure noise");
    let later = Plan::new(plan.steps()[1..].iter().map(|s| (s.from, s.to))).unwrap();
    let setting = Setting { plan: &later, ..setting };
    let (x, _) = setting.run(Box::new(FlowHeun), Box::new(Uniform));
    let error = worst(&x, &exact(&start(), later.steps()[0].from, MEAN));
    println!("flow Heun: {error:e}");
    assert!(error <= 1e-3, "{error:e}");
}

#[test]
fn multistep_rules_are_of_second_order() {
    let schedule = Vp::default();
    let model = Toy { schedule: schedule.clone(), rate: 0. };
    let error = |rule: Box<dyn StepRule>, steps| {
        let plan = Plan::vp(&schedule, Spacing::Trailing, steps).unwrap();
        let setting = Setting {
            model: &model,
            plan: &plan,
            warm_start: WarmStart::Fresh,
            iteration_guidance: None,
            total: 2 * steps,
        };
        let (x, _) = setting.run(rule, Box::new(Uniform));
        worst(&x, &exact(&start(), plan.steps()[0].from, MEAN))
    };
    let first = error(Box::<Ddim>::default(), 40);
    let (dpm, unipc) = (error(Box::<DpmSolver>::default(), 40), error(Box::<UniPc>::default(), 40));
    println!("40 steps: DDIM {first:.4}, DPM-Solver++(2M) {dpm:.4}, UniPC-2 {unipc:.4}");
    assert!(dpm < first / 2. && unipc < first / 2., "{first} {dpm} {unipc}");
}

#[test]
fn reuse_is_eight_times_closer_at_40_steps_and_80_applications() {
    let schedule = Vp::default();
    let plan = Plan::vp(&schedule, Spacing::Published, 40).unwrap();
    let model = Toy { schedule, rate: 0.5 };
    let truth = exact(&start(), plan.steps()[0].from, MEAN);
    let error = |warm_start, rule: Box<dyn StepRule>| {
        let setting = Setting { model: &model, plan: &plan, warm_start, iteration_guidance: None, total: 80 };
        let (x, cost) = setting.run(rule, Box::new(Uniform));
        assert_eq!(cost.applications, 80);
        println!("{warm_start}: {:e}, residual {:e}", worst(&x, &truth), cost.mean_residual());
        worst(&x, &truth)
    };
    let rules: [fn() -> Box<dyn StepRule>; 2] = [|| Box::new(Ddim::default()), || Box::new(DpmSolver::default())];
    for rule in rules {
        let fresh = error(WarmStart::Fresh, rule());
        let all = [WarmStart::Reuse, WarmStart::Blend { keep: 0.5 }, WarmStart::Extrapolate].map(|w| error(w, rule()));
        assert!(all[0] * 8. <= fresh, "{fresh} {all:?}");
        assert!(all[1] < fresh);
    }
}

#[test]
fn adaptive_keeps_the_budget_and_spends_most_of_it() {
    let schedule = Vp::default();
    let plan = Plan::vp(&schedule, Spacing::Published, 40).unwrap();
    let model = Toy { schedule, rate: 0.5 };
    let setting =
        Setting { model: &model, plan: &plan, warm_start: WarmStart::Reuse, iteration_guidance: None, total: 160 };
    let (_, cost) = setting.run(Box::new(Ddim::default()), Box::new(Adaptive::default()));
    println!("adaptive: {} of 160 applications", cost.applications);
    assert!(cost.applications <= 160 && cost.applications >= 120, "{}", cost.applications);
    let (_, early) = setting.run(Box::new(Ddim::default()), Box::new(Ramp::EARLY));
    assert!(early.records[0].applications > early.records[39].applications);
    assert_eq!(early.applications, 160);
}

#[test]
fn guidance_is_exact_and_costs_what_it_asks() {
    let schedule = Vp::default();
    let plan = Plan::vp(&schedule, Spacing::Published, 200).unwrap();
    let model = Toy { schedule, rate: 0.1 };
    let setting =
        Setting { model: &model, plan: &plan, warm_start: WarmStart::Fresh, iteration_guidance: None, total: 399 * 12 };
    let run = |guidance: Guidance| {
        let rule = Box::new(Heun);
        let levels = plan.evaluations(&*rule);
        let without = levels.iter().filter(|l| guidance.acts(**l)).count();
        let denoiser = Guided {
            conditional: setting.branch(1, levels.len(), Box::new(Uniform)),
            unconditional: setting.branch(0, without, Box::new(Uniform)),
            guidance,
        };
        let noise = |_: &Tensor| -> Result<Tensor> { panic!("no noise") };
        let mut sampler = Sampler::new(&plan, rule, denoiser, start(), Box::new(noise)).unwrap();
        (sampler.finish().unwrap(), sampler.denoiser().unconditional.ledgers().next().unwrap().done())
    };
    // Data of one deviation and two means: the guided flow is that of data at the extrapolated mean.
    let from = plan.steps()[0].from;
    let (x, solves) = run(Guidance { scale: 3., ..Guidance::default() });
    assert_eq!(solves, 399);
    assert!(worst(&x, &exact(&start(), from, MEAN + 3.)) < 2e-2);
    let (x, _) = run(Guidance { scale: 3., channels: Some(1), ..Guidance::default() });
    let channel = |t: &Tensor, i| t.narrow(1, i, 1).unwrap();
    assert!(worst(&channel(&x, 0), &channel(&exact(&start(), from, MEAN + 3.), 0)) < 2e-2);
    assert!(worst(&channel(&x, 1), &channel(&exact(&start(), from, MEAN + 1.), 1)) < 2e-2);
    let (x, solves) = run(Guidance::default());
    assert_eq!(solves, 0);
    assert!(worst(&x, &exact(&start(), from, MEAN + 1.)) < 2e-2);
    let (_, solves) = run(Guidance { scale: 3., interval: (0.2, 0.6), ..Guidance::default() });
    assert!(solves > 0 && solves < 200, "{solves}");
}

#[test]
fn iteration_guidance_extrapolates_a_geometric_series_to_its_limit() {
    // Errors shrink by 1/2: from iterate 1 (error 1/2) to 3 (1/8), going 4/3 of the way arrives.
    let schedule = Vp::default();
    let plan = Plan::vp(&schedule, Spacing::Published, 50).unwrap();
    let truth = Toy { schedule: schedule.clone(), rate: 0. };
    let model = Toy { schedule, rate: 0.5 };
    let guided = Some(IterationGuidance { early: 1, scale: 4. / 3. });
    let base =
        Setting { model: &model, plan: &plan, warm_start: WarmStart::Fresh, iteration_guidance: guided, total: 150 };
    let (got, cost) = base.run(Box::new(Ddim::default()), Box::new(Uniform));
    let converged = Setting { model: &truth, iteration_guidance: None, ..base };
    let (want, _) = converged.run(Box::new(Ddim::default()), Box::new(Uniform));
    assert!(worst(&got, &want) < 1e-10, "{:e}", worst(&got, &want));
    assert_eq!(cost.applications, 150);
}
