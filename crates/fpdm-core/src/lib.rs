//! Fixed point diffusion models: a denoiser whose depth is a solve, not a stack.
//!
//! In a diffusion transformer the middle blocks are replaced by one block that is iterated to a fixed point,
//! `z = f(z; x, t, y)` (Bai and Melas-Kyriazi 2024, arXiv 2401.08741). This crate holds what everybody must agree on:
//! the map and how it is solved, the network that asks for the solve, noise levels and predictions, seeded randomness,
//! and the weights that go in.
//!
//! # Should you be using it?
//!
//! Yes, to plug in a solver, a stop rule, a codec or a network of your own, or to run a pretrained model from your own
//! program. To draw pictures from a command line, take the examples of the workspace; to train, the crate for training.
//!
//! # The three phases
//!
//! [`ImplicitModel::prepare`] runs the layers before the implicit part and returns a [`Problem`];
//! [`solve`] iterates its map with any [`Solver`] until a [`StopRule`] says so; [`Problem::readout`] runs the layers
//! after it. Solver, budget, warm start and gradient are the caller's.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::VarBuilder;
//! use fpdm_core::dit::{Config, Fpdit, Labels, Size, init};
//! use fpdm_core::{Anderson, Budget, ImplicitModel, Tolerance, solve};
//!
//! let config = Config {
//!     input_size: [8, 8],
//!     hidden_size: 32,
//!     num_heads: 2,
//!     labels: Labels::Classes(10),
//!     ..Config::fpdm(Size::S, 2)
//! };
//! let weights = init(&config, 0, DType::F32, &Device::Cpu)?;
//! let model = Fpdit::new(&config, VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu))?;
//!
//! let x = Tensor::zeros((2, 4, 8, 8), DType::F32, &Device::Cpu)?; // noisy latents
//! let t = Tensor::new(&[900f32, 900.], &Device::Cpu)?;
//! let y = Tensor::new(&[3u32, 10], &Device::Cpu)?; // class 3, and the null class
//! let problem = model.prepare(&x, &t, &y)?;
//! let mut stop = (Budget(8), Tolerance { rel: 1e-2, ..Default::default() });
//! let solution = solve(&Anderson::default(), &*problem.frozen, problem.z0.clone(), &mut stop)?;
//! let prediction = problem.readout(&solution.z)?;
//! assert_eq!(prediction.dims(), [2, 8, 8, 8]); // 4 channels, and 4 for the variance
//! assert!(solution.applications <= 8);
//! # fpdm_core::Result::<()>::Ok(())
//! ```
//!
//! # The traits
//!
//! | trait | the question it answers |
//! |---|---|
//! | [`FixedPointMap`] | what is iterated? |
//! | [`Solver`] | how is it iterated? |
//! | [`StopRule`] | when does it end? |
//! | [`ImplicitModel`] | what does a network ask to be solved? |
//! | [`NoiseSchedule`] | how much signal and noise is there at a time? |
//! | [`Denoiser`] | what is signal and what is noise in this latent? |
//! | [`LatentCodec`] | what is a latent? |
//!
//! # Symbols
//!
//! `z` state of the solve, `x` noisy latent, `t` time, `y` label, `c` conditioning vector, `x0` clean latent, `eps`
//! noise. Shapes: **B** batch, **C** channels, **H** height, **W** width, **T** tokens, **D** width of a token. One
//! *application* is one `f`, one *solve* one fixed point, one *step* one noise level, a *budget* counts applications.

pub mod checkpoint;
mod codec;
mod diffusion;
pub mod dit;
mod error;
mod fixed_point;
pub mod hub;
mod model;
mod parameterization;
pub mod params;
mod pretrained;
mod reverse;
pub mod rng;
mod schedule;
mod solve;
mod solver;
mod stop;

pub use codec::{LatentCodec, Moments};
pub use diffusion::{CodecId, Diffusion, Normalisation, Recommended, Schedule};
pub use error::{Error, Result};
pub use fixed_point::{Detached, FixedPointMap, Iterate, Residual};
pub use model::{Denoiser, ImplicitModel, Prediction, Problem, Staged};
pub use parameterization::Parameterization;
pub use pretrained::Pretrained;
pub use reverse::{Kept, Reverse, Reversible};
pub use schedule::{Flow, Level, NoiseSchedule, Posterior, Vp, diffuse};
pub use solve::{Solution, StopReason, solve, solve_recorded};
pub use solver::{Anderson, Broyden, Iterates, Picard, Solver, iterates};
pub use stop::{Budget, Divergence, Stagnation, StopRule, Tolerance};

/// Compiles the plug-ins of the guide.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/extending.md")]
struct Extending;
