//! Training of fixed point diffusion models: gradients of a solve, an objective, data, checkpoints.
//!
//! # Should you be using it?
//!
//! Yes, to train a network of your own or to compare ways to differentiate a fixed point. To train from a command line,
//! take the examples `encode_dataset` and `train` of the workspace.
//!
//! # The parts
//!
//! | question | answered by |
//! |---|---|
//! | which iterations make a graph, and how does a gradient pass the solve? | [`GradientEstimator`]: [`StochasticJfb`], [`Jfb`], [`MultiStepJfb`], [`Phantom`], [`Implicit`], [`Unrolled`] |
//! | what is kept for the backward pass? | [`Memory`] |
//! | what is the loss? | [`Objective`], [`Weighting`], [`Supervision`], [`JacobianPenalty`], [`Consistency`] |
//! | where do samples come from? | [`DataSource`]: [`LatentShards`], [`NpyFolders`], [`Pixels`], [`Encoded`] |
//! | where do images come from? | [`ImageSource`]: [`ImageFolder`], [`TarShards`] |
//! | who reads while the device computes? | [`Ahead`], [`Prefetch`] |
//! | how do weights move? | [`AdamW`], [`LearningRate`], [`Ema`] over the flat buffers of [`Parameters`] |
//! | what is a run? | [`Trainer`], and [`State`] on disk |
//!
//! Everything random is a function of a seed and of where in the run it is drawn, and batch number `index` is a function
//! of `index`: a run that is stopped and goes on is the run that was not stopped, bit for bit on the CPU.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::VarBuilder;
//! use fpdm_core::dit::{Config, Fpdit, Labels, Size, init};
//! use fpdm_core::{Moments, Result};
//! use fpdm_train::{Batch, DataSource, Objective, Settings, StochasticJfb, Trainer};
//!
//! /// Every latent is one.
//! struct Ones;
//! impl DataSource for Ones {
//!     fn batch(&self, index: u64, size: usize) -> Result<Batch> {
//!         let mean = Tensor::ones((size, 4, 4, 4), DType::F32, &Device::Cpu)?;
//!         Ok(Batch {
//!             moments: Moments { std: mean.zeros_like()?, mean },
//!             y: Tensor::zeros(size, DType::U32, &Device::Cpu)?,
//!             positions: (index * size as u64..(index + 1) * size as u64).collect(),
//!         })
//!     }
//! }
//!
//! let config =
//!     Config { input_size: [4, 4], hidden_size: 16, num_heads: 2, labels: Labels::Classes(1), ..Config::fpdm(Size::S, 2) };
//! let weights = init(&config, 0, DType::F32, &Device::Cpu)?;
//! let model = Fpdit::new(&config, VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu))?;
//! let settings = Settings { batch_size: 2, ..Settings::default() };
//! let estimator = Box::new(StochasticJfb::default());
//! let mut trainer = Trainer::new(
//!     model,
//!     config.labels,
//!     &weights,
//!     Objective::published()?,
//!     estimator,
//!     settings,
//!     serde_json::json!({ "model": config }),
//! )?;
//! for report in trainer.steps(&Ones).take(2) {
//!     let report = report?;
//!     println!("step {}: loss {:.3}, {} + {} iterations", report.step, report.loss, report.n, report.m);
//! }
//! assert_eq!(trainer.steps_done(), 2);
//! # Result::<()>::Ok(())
//! ```

mod checkpoint;
mod data;
mod ema;
mod estimator;
mod fused;
mod learning_rate;
mod memory;
mod objective;
mod optim;
mod parameters;
mod report;
mod trainer;

pub use checkpoint::{State, latest_checkpoint};
pub use data::{
    Ahead, Batch, DataSource, Encoded, ImageDecoder, ImageFolder, ImageSource, LatentIndex, LatentShard, LatentShards,
    Normalised, NpyFolders, Order, Part, Pixels, Prefetch, ShardEntry, TarShards, measure_latents,
};
pub use ema::Ema;
pub use estimator::{
    Effort, Estimate, GradientEstimator, Implicit, Jfb, Memory, MultiStepJfb, Phantom, Sink, StochasticJfb, Unrolled,
};
pub use learning_rate::{Decay, LearningRate};
pub use memory::{peak_bytes, peak_resident_bytes};
pub use objective::{
    Consistency, Draw, JacobianPenalty, Losses, Objective, Pairs, Recipe, Supervision, Times, Weighting,
    variational_bound,
};
pub use optim::{AdamW, AdamWConfig, clip_grad_norm};
pub use parameters::{Gradients, Parameters};
pub use report::StepReport;
pub use trainer::{Settings, Trainer};
