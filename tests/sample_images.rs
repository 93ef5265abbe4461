//! What belongs to an image and what to its batch, in every dtype, on a real network.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use fpdm_core::dit::{Config, Fpdit, Labels, Size, init, perturb_gates};
use fpdm_core::{Anderson, Broyden, Error, ImplicitModel, Parameterization, Picard, Result, Solver, Vp};
use fpdm_sample::{
    Adaptive, AllocationPolicy, Cost, Ddim, Ddpm, FixedPointDenoiser, Guidance, Guided, ImageNoise, IterationGuidance,
    Ledger, Network, Plan, Ramp, Sampler, Spacing, StepRule, Variance, WarmStart, Work,
};

const CLASSES: usize = 10;

fn model(dtype: DType) -> Fpdit {
    let config = Config {
        input_size: [8, 8],
        hidden_size: 64,
        num_heads: 4,
        labels: Labels::Classes(CLASSES),
        ..Config::fpdm(Size::S, 2)
    };
    let variables = init(&config, 5, DType::F32, &Device::Cpu).unwrap();
    perturb_gates(&config, &variables, 6, 0.05).unwrap();
    let tensors: std::collections::HashMap<String, Tensor> =
        variables.data().lock().unwrap().iter().map(|(k, v)| (k.clone(), v.as_detached_tensor())).collect();
    Fpdit::new(&config, VarBuilder::from_tensors(tensors, dtype, &Device::Cpu)).unwrap()
}

struct Setting<'a> {
    model: &'a Fpdit,
    solver: &'a dyn Solver,
    warm_start: WarmStart,
    guidance: Guidance,
    rule: fn() -> Box<dyn StepRule>,
}

impl Setting<'_> {
    fn sample(&self, images: &[u64]) -> Result<(Vec<Vec<f32>>, Cost)> {
        let plan = Plan::vp(&Vp::default().zero_terminal_snr()?, Spacing::Published, 5)?;
        let work = Work::of(self.model.config());
        let network =
            Network { model: self.model, parameterization: Parameterization::V, dtype: self.model.dtype(), work };
        let solves = plan.solves(&*(self.rule)());
        let branch = |labels: Vec<u32>, total| -> Result<_> {
            let labels = Tensor::new(labels, &Device::Cpu)?;
            let policy = Box::new(Ramp::EARLY);
            let mut d = FixedPointDenoiser::new(network, labels, self.solver, policy, Ledger::new(total, solves)?);
            d.warm_start = self.warm_start;
            Ok(d)
        };
        let denoiser = Guided {
            conditional: branch(images.iter().map(|i| (i % CLASSES as u64) as u32).collect(), 3 * solves)?,
            unconditional: branch(vec![CLASSES as u32; images.len()], 2 * solves)?,
            guidance: self.guidance,
        };
        let mut noise = ImageNoise::new(42, images);
        let x = noise.start((4, 8, 8), DType::F32, &Device::Cpu)?;
        let mut sampler = Sampler::new(&plan, (self.rule)(), denoiser, x, Box::new(noise))?;
        Ok((sampler.finish()?.flatten_from(1)?.to_vec2()?, sampler.cost()))
    }
}

const GUIDED: Guidance = Guidance { scale: 2., channels: Some(3), interval: (0., 1.) };

#[test]
fn an_image_is_the_same_in_every_batch() -> Result<()> {
    let rules: [fn() -> Box<dyn StepRule>; 2] =
        [|| Box::new(Ddpm { variance: Variance::Learned }), || Box::new(Ddim::default())];
    let model = model(DType::F32);
    let anderson = Anderson::default();
    for rule in rules {
        for (solver, warm_start) in
            [(&Picard { damp: 0. } as &dyn Solver, WarmStart::Reuse), (&anderson, WarmStart::Fresh)]
        {
            let setting = Setting { model: &model, solver, warm_start, guidance: GUIDED, rule };
            let (all, _) = setting.sample(&[0, 1, 2, 3, 4, 5, 6, 7])?;
            assert!(all.iter().flatten().all(|v| v.is_finite()));
            assert_ne!(all[0], all[1]);
            for batch in [1, 3] {
                let images: Vec<u64> = (0..8).collect();
                for part in images.chunks(batch) {
                    for (image, got) in part.iter().zip(setting.sample(part)?.0) {
                        assert_eq!(got, all[*image as usize], "image {image} in a batch of {}", part.len());
                    }
                }
            }
            // Neither the place in a batch nor its neighbours matter.
            assert_eq!(setting.sample(&[7, 2])?.0, [all[7].clone(), all[2].clone()]);
        }
    }
    Ok(())
}

/// Adaptive solves, each image by itself; latents and what each image has cost.
fn adaptive(
    model: &Fpdit,
    solver: &dyn Solver,
    guided: Option<IterationGuidance>,
    images: &[u64],
) -> Result<(Vec<Vec<f32>>, Vec<Cost>)> {
    let plan = Plan::vp(&Vp::default().zero_terminal_snr()?, Spacing::Published, 6)?;
    let work = Work::of(model.config());
    let network = Network { model, parameterization: Parameterization::V, dtype: model.dtype(), work };
    let labels = Tensor::new(images.iter().map(|i| (i % CLASSES as u64) as u32).collect::<Vec<_>>(), &Device::Cpu)?;
    let policies = images.iter().map(|_| Box::new(Adaptive::from_threshold(0.3)) as Box<dyn AllocationPolicy>);
    let ledger = Ledger::new(36, plan.solves(&Ddim::default()))?;
    let mut denoiser = FixedPointDenoiser::per_image(network, labels, solver, policies, ledger);
    denoiser.warm_start = WarmStart::Reuse;
    denoiser.iteration_guidance = guided;
    let mut noise = ImageNoise::new(42, images);
    let x = noise.start((4, 8, 8), DType::F32, &Device::Cpu)?;
    let mut sampler = Sampler::new(&plan, Box::new(Ddim::default()), denoiser, x, Box::new(noise))?;
    let latents = sampler.finish()?.flatten_from(1)?.to_vec2()?;
    assert!(sampler.denoiser().ledgers().all(|ledger| ledger.spent() <= 36 && ledger.solves_left() == 0));
    Ok((latents, sampler.costs()))
}

#[test]
fn an_adaptive_image_is_the_same_in_every_batch() -> Result<()> {
    let model = model(DType::F32);
    let solvers: [&dyn Solver; 3] = [&Picard { damp: 0. }, &Anderson::default(), &Broyden::default()];
    for solver in solvers {
        for guided in [None, Some(IterationGuidance { early: 3, scale: 1.5 })] {
            let (all, costs) = adaptive(&model, solver, guided, &[0, 1, 2, 3, 4])?;
            assert!(all.iter().flatten().all(|v| v.is_finite()));
            let spent = |cost: &Cost| cost.records.iter().map(|r| r.applications).collect::<Vec<_>>();
            assert!(costs.iter().any(|cost| spent(cost) != spent(&costs[0])), "all ended together: nothing is tested");
            for part in [&[0u64][..], &[3], &[4, 1, 2]] {
                let (some, their) = adaptive(&model, solver, guided, part)?;
                for (i, &image) in part.iter().enumerate() {
                    assert_eq!(some[i], all[image as usize], "image {image} among {part:?}");
                    let (got, want) = (&their[i], &costs[image as usize]);
                    assert_eq!((&got.records, got.block_passes), (&want.records, want.block_passes));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn an_image_that_has_ended_is_not_computed_any_more() -> Result<()> {
    let model = model(DType::F32);
    let x = Tensor::zeros((3, 4, 8, 8), DType::F32, &Device::Cpu)?;
    let x = (x + Tensor::arange(0f32, 3., &Device::Cpu)?.reshape((3, 1, 1, 1))?.broadcast_as((3, 4, 8, 8))?)?;
    let (t, y) = (Tensor::full(500f32, 3, &Device::Cpu)?, Tensor::new(&[0u32, 1, 2], &Device::Cpu)?);
    let problem = model.prepare(&x, &t, &y)?;
    let some = problem.frozen.rows(&[2, 0])?.expect("this map can be cut");
    let index = Tensor::new(&[2u32, 0], &Device::Cpu)?;
    let whole = problem.frozen.apply(&problem.z0)?.index_select(&index, 0)?;
    let part = some.apply(&problem.z0.index_select(&index, 0)?)?;
    assert_eq!(part.flatten_all()?.to_vec1::<f32>()?, whole.flatten_all()?.to_vec1::<f32>()?);
    Ok(())
}

#[test]
fn half_precision_is_near() -> Result<()> {
    let picture = |dtype| -> Result<Vec<f32>> {
        let setting = Setting {
            model: &model(dtype),
            solver: &Picard { damp: 0. },
            warm_start: WarmStart::Extrapolate,
            guidance: Guidance::default(),
            rule: || Box::new(Ddim::default()),
        };
        Ok(setting.sample(&[0, 1])?.0.concat())
    };
    let full = picture(DType::F32)?;
    for (dtype, tolerance) in [(DType::F16, 0.01), (DType::BF16, 0.08)] {
        let half = picture(dtype)?;
        let worst = full.iter().zip(&half).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
        println!("{dtype:?}: {worst}");
        assert!(worst < tolerance, "{dtype:?}: {worst}");
    }
    Ok(())
}

#[test]
fn the_account_adds_up() -> Result<()> {
    let model = model(DType::F32);
    let setting = Setting {
        model: &model,
        solver: &Picard { damp: 0. },
        warm_start: WarmStart::Fresh,
        guidance: GUIDED,
        rule: || Box::new(Ddim::default()),
    };
    let (_, cost) = setting.sample(&[0])?;
    let work = Work::of(model.config());
    assert_eq!((cost.solves, cost.applications, cost.block_passes), (10, 25, 25 + 2 * 10));
    assert_eq!(cost.multiply_adds, 10 * (work.prepare + work.readout) + 25 * work.application);
    assert_eq!(cost.records.len(), 10);
    assert!(cost.seconds > 0. && cost.records.iter().all(|r| r.residual > 0.));
    assert_eq!(cost.records.iter().map(|r| r.applications).sum::<usize>(), 25);
    let (_, alone) = Setting { guidance: Guidance::default(), ..setting }.sample(&[0])?;
    assert_eq!((alone.solves, alone.applications), (5, 15));
    Ok(())
}

#[test]
fn bad_settings_are_refused_before_any_work() {
    let refused = |result: Result<()>, words: &[&str]| {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Config { .. }), "{error:?}");
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    let zero = Vp::default().zero_terminal_snr().unwrap();
    let plan = Plan::vp(&zero, Spacing::Published, 5).unwrap();
    refused(Plan::vp(&zero, Spacing::Published, 0).map(drop), &["steps", "0"]);
    refused(Plan::vp(&zero, Spacing::Leading, 1001).map(drop), &["steps", "1001", "1000"]);
    refused(Ledger::new(4, 5).map(drop), &["budget", "4", "5"]);
    refused(Ddim { eta: 2. }.check(&plan), &["eta", "2"]);
    refused(
        Ddpm::default().check(&Plan::flow(&fpdm_core::Flow::default(), Spacing::Trailing, 5).unwrap()),
        &["schedule"],
    );
    refused(fpdm_sample::FlowHeun.check(&plan), &["sampler", "heun"]);
    refused(GUIDED.check(2), &["guided channels", "3"]);
    refused(Guidance { scale: f64::NAN, ..GUIDED }.check(4), &["guidance"]);
    refused(Guidance { interval: (0.5, 0.2), ..GUIDED }.check(4), &["interval"]);
    let model = model(DType::F32);
    let eps = Network { model: &model, parameterization: Parameterization::Eps, dtype: DType::F32, work: Work::MAP };
    refused(eps.check(&plan), &["prediction", "eps", "v"]);
    refused("blend:7".parse::<WarmStart>().map(drop), &["reuse", "7"]);
    refused("sideways".parse::<Spacing>().map(drop), &["spacing", "sideways", "trailing"]);
}
