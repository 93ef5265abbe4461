//! Sampling from fixed point diffusion models: a budget of block passes, spent where it pays, and an account of it.
//!
//! A trajectory is made of parts that do not know each other:
//!
//! | question | answered by |
//! |---|---|
//! | at which noise levels? | [`Plan`], [`Spacing`] |
//! | how does one level become the next? | [`StepRule`]: [`Ddpm`], [`Ddim`], [`DpmSolver`], [`UniPc`], [`Euler`], [`Heun`], [`FlowHeun`] |
//! | how much may each solve spend? | [`AllocationPolicy`]: [`Uniform`], [`Ramp`], [`Counts`], [`Curve`], [`Adaptive`]; [`Ledger`] keeps the law |
//! | where does a solve start? | [`WarmStart`] |
//! | what is the network asked? | [`FixedPointDenoiser`], alone or two of them [`Guided`] |
//! | what did it cost? | [`Cost`] |
//!
//! One *application* is one evaluation of the implicit map, one *solve* is one fixed point, one *step* is one noise
//! level; a *budget* counts applications. *Early* is noisy: policies speak of progress `u` from 0, pure noise, to 1.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use fpdm_core::{ImplicitModel, Parameterization, Picard, Problem, Result, Vp};
//! use fpdm_sample::{Ddim, FixedPointDenoiser, ImageNoise, Ledger, Network, Plan, Sampler, Spacing, Uniform, Work};
//!
//! /// Its fixed point says that the noise is x itself.
//! struct Toy;
//! impl ImplicitModel for Toy {
//!     fn prepare(&self, x: &Tensor, _: &Tensor, _: &Tensor) -> Result<Problem> {
//!         let half = (x * 0.5)?;
//!         let map = move |z: &Tensor| -> Result<Tensor> { Ok(((z * 0.5)? + &half)?) };
//!         Ok(Problem::new(std::sync::Arc::new(map), x.zeros_like()?, |z| Ok(z.clone())))
//!     }
//! }
//!
//! let (device, images) = (Device::Cpu, [0, 1, 2]);
//! let plan = Plan::vp(&Vp::default(), Spacing::Trailing, 10)?;
//! let network = Network { model: &Toy, parameterization: Parameterization::Eps, dtype: DType::F32, work: Work::MAP };
//! network.check(&plan)?;
//! let labels = Tensor::zeros(images.len(), DType::U32, &device)?;
//! let ledger = Ledger::new(40, plan.solves(&Ddim::default()))?;
//! let solver = Picard::default();
//! let denoiser = FixedPointDenoiser::new(network, labels, &solver, Box::new(Uniform), ledger);
//! let mut noise = ImageNoise::new(42, &images);
//! let x = noise.start((1, 4, 4), DType::F32, &device)?;
//! let mut sampler = Sampler::new(&plan, Box::new(Ddim::default()), denoiser, x, Box::new(noise))?;
//! for step in sampler.by_ref() {
//!     println!("{}", step?.x0); // a preview
//! }
//! assert_eq!(sampler.cost().applications, 40);
//! # fpdm_core::Result::<()>::Ok(())
//! ```

mod allocation;
mod cost;
mod denoiser;
mod explicit;
mod graphs;
mod guidance;
mod noise;
mod plan;
mod rule;
mod sampler;
mod spacing;

pub use allocation::{
    Adaptive, AllocationPolicy, Branches, Counts, Curve, Ledger, Ramp, Slope, Spend, Table, Uniform, apportion,
};
pub use cost::{Account, Cost, SolveRecord, Work};
pub use denoiser::{FixedPointDenoiser, IterationGuidance, Network, WarmStart};
pub use explicit::Explicit;
pub use graphs::{Graphed, Graphs};
pub use guidance::{Guidance, Guided};
pub use noise::{ImageNoise, Noise};
pub use plan::{Plan, Step};
pub use rule::{Ddim, Ddpm, DpmSolver, Euler, FlowHeun, Heun, StepRule, Stepped, UniPc, Variance};
pub use sampler::{Progress, Sampler};
pub use spacing::Spacing;
