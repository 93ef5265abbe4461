//! Fixed point diffusion models: the map, how it is solved, and the weights that go in.

mod codec;
mod error;
mod fixed_point;
mod model;
mod parameterization;
pub mod rng;
mod schedule;
mod solve;
mod solver;
mod stop;

pub use codec::{LatentCodec, Moments};
pub use error::{Error, Result};
pub use fixed_point::{Detached, FixedPointMap, Iterate, Residual};
pub use model::{Denoiser, ImplicitModel, Prediction, Problem};
pub use parameterization::Parameterization;
pub use schedule::{Flow, Level, NoiseSchedule, Posterior, Vp, diffuse};
pub use solve::{Solution, StopReason, solve, solve_recorded};
pub use solver::{Anderson, Broyden, Iterates, Picard, Solver, iterates};
pub use stop::{Budget, Divergence, Stagnation, StopRule, Tolerance};
