//! Training of fixed point diffusion models.

mod checkpoint;
mod data;
mod ema;
mod estimator;
mod learning_rate;
mod memory;
mod objective;
mod optim;
mod parameters;
mod trainer;

pub use checkpoint::{State, latest_checkpoint};
pub use data::{
    Batch, DataSource, ImageDecoder, ImageFolder, ImageSource, LatentIndex, LatentShard, LatentShards, NpyFolders,
    Order, Part, Pixels, ShardEntry, TarShards,
};
pub use ema::Ema;
pub use estimator::{
    Effort, Estimate, GradientEstimator, Implicit, Jfb, Memory, MultiStepJfb, Phantom, Sink, StochasticJfb, Unrolled,
};
pub use learning_rate::{Decay, LearningRate};
pub use memory::peak_resident_bytes;
pub use objective::{
    Consistency, Draw, JacobianPenalty, Losses, Objective, Supervision, Times, Weighting, variational_bound,
};
pub use optim::{AdamW, AdamWConfig, clip_grad_norm};
pub use parameters::{Gradients, Parameters};
pub use trainer::{Settings, StepReport, Trainer};
