//! Training of fixed point diffusion models.

mod data;
mod ema;
mod estimator;
mod learning_rate;
mod objective;
mod optim;
mod parameters;

pub use data::{Batch, DataSource, Order};
pub use ema::Ema;
pub use estimator::{
    Effort, Estimate, GradientEstimator, Implicit, Jfb, Memory, MultiStepJfb, Phantom, Sink, StochasticJfb, Unrolled,
};
pub use learning_rate::{Decay, LearningRate};
pub use objective::{
    Consistency, Draw, JacobianPenalty, Losses, Objective, Supervision, Times, Weighting, variational_bound,
};
pub use optim::{AdamW, AdamWConfig, clip_grad_norm};
pub use parameters::{Gradients, Parameters};
