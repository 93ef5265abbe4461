//! Fixed point diffusion models: the map, how it is solved, and the weights that go in.

pub mod checkpoint;
mod error;
mod fixed_point;
pub mod hub;
mod model;
pub mod params;
mod schedule;

pub use error::{Error, Result};
pub use fixed_point::{Detached, FixedPointMap};
pub use model::{Denoiser, ImplicitModel, Prediction, Problem};
pub use schedule::Level;
