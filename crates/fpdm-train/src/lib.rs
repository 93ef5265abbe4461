//! Training of fixed point diffusion models.

mod ema;
mod estimator;
mod learning_rate;
mod optim;
mod parameters;

pub use ema::Ema;
pub use estimator::{
    Effort, Estimate, GradientEstimator, Implicit, Jfb, Memory, MultiStepJfb, Phantom, Sink, StochasticJfb, Unrolled,
};
pub use learning_rate::{Decay, LearningRate};
pub use optim::{AdamW, AdamWConfig, clip_grad_norm};
pub use parameters::{Gradients, Parameters};
