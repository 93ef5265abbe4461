//! Diffusion transformers: the implicit network of FPDM and the explicit DiT that it is measured against.
//!
//! Both are built of the same [blocks](block) with the published parameter names, so that published weights load as
//! they are. [`Config`] says what to build, [`Config::parameters`] lists every tensor of it, [`init`] makes fresh
//! ones, [`Fpdit`] and [`Dit`] compute.

mod around;
pub mod block;
mod condition;
mod config;
mod embed;
mod final_layer;
mod fpdit;
mod init;
mod linear;
mod parameters;
mod plain;
mod reverse;

pub use condition::timestep_embedding;
pub use config::{Architecture, Config, Labels, Size};
pub use embed::position_embedding;
pub use fpdit::{Features, Fpdit, ImplicitMap};
pub use init::{init, perturb_gates};
pub use linear::Linear;
pub use parameters::{Init, Parameter};
pub use plain::Dit;
