//! What a sampler adds to the network it runs: S/2, f32, batch 4, on the CPU, over the same `prepare`, applications and
//! `readout` made by hand.
//!
//! The two are timed in turn and the medians compared, because a machine that is not alone drifts.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use fpdm_core::dit::{Config, Fpdit, Size, init, perturb_gates};
use fpdm_core::{ImplicitModel, Parameterization, Picard, Result, Vp};
use fpdm_sample::{
    Ddim, FixedPointDenoiser, ImageNoise, Ledger, Network, Plan, Sampler, Spacing, Uniform, WarmStart, Work,
};

const BATCH: usize = 4;
const STEPS: usize = 4;
const APPLICATIONS: usize = 6;
const ROUNDS: usize = 7;

fn main() -> Result<()> {
    let config = Config::fpdm(Size::S, 2);
    let device = Device::Cpu;
    let variables = init(&config, 0, DType::F32, &device)?;
    perturb_gates(&config, &variables, 1, 0.02)?;
    let weights = variables.data().lock().expect("nobody else holds it").clone();
    let weights = weights.into_iter().map(|(name, var)| (name, var.as_detached_tensor())).collect();
    let model = Fpdit::new(&config, VarBuilder::from_tensors(weights, DType::F32, &device))?;
    let y = Tensor::full(1000u32, BATCH, &device)?;
    let plan = Plan::vp(&Vp::default().zero_terminal_snr()?, Spacing::Published, STEPS)?;
    let images: Vec<u64> = (0..BATCH as u64).collect();

    let sampled = || -> Result<(f64, f64)> {
        let begun = Instant::now();
        let network = Network {
            model: &model,
            parameterization: Parameterization::V,
            dtype: DType::F32,
            work: Work::of(&config),
        };
        let ledger = Ledger::new(STEPS * APPLICATIONS, STEPS)?;
        let solver = Picard::default();
        let mut denoiser = FixedPointDenoiser::new(network, y.clone(), &solver, Box::new(Uniform), ledger);
        denoiser.warm_start = WarmStart::Reuse;
        let mut noise = ImageNoise::new(1, &images);
        let x = noise.start((4, 32, 32), DType::F32, &device)?;
        let mut sampler = Sampler::new(&plan, Box::new(Ddim::default()), denoiser, x, Box::new(noise))?;
        sampler.finish()?;
        Ok((begun.elapsed().as_secs_f64(), sampler.cost().seconds))
    };
    let x = ImageNoise::new(1, &images).start((4, 32, 32), DType::F32, &device)?;
    let by_hand = || -> Result<(f64, f64)> {
        let begun = Instant::now();
        let mut applying = 0.;
        for step in plan.steps() {
            let t = Tensor::full(step.from.t as f32, BATCH, &device)?;
            let problem = model.prepare(&x, &t, &y)?;
            let inner = Instant::now();
            let mut z = problem.z0.clone();
            for _ in 0..APPLICATIONS {
                z = problem.frozen.apply(&z)?;
            }
            applying += inner.elapsed().as_secs_f64();
            problem.readout(&z)?;
        }
        Ok((begun.elapsed().as_secs_f64(), applying))
    };

    let (mut ours, mut raw, mut maps) = (Vec::new(), Vec::new(), Vec::new());
    by_hand()?;
    for _ in 0..ROUNDS {
        ours.push(sampled()?.0);
        let (all, applying) = by_hand()?;
        raw.push(all);
        maps.push(applying);
    }
    let (ours, raw, maps) = (median(ours), median(raw), median(maps));
    println!("sampling {ours:.4} s, by hand {raw:.4} s (of it applications {maps:.4} s), ratio {:.4}", ours / raw);
    Ok(())
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
