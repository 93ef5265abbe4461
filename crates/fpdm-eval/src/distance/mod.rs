//! Distances between two sets of features.

mod frechet;
mod kid;
mod manifold;
mod neighbours;
mod rows;

pub use frechet::{FrechetTo, Gaussian, frechet_distance};
pub use kid::{Kid, KidSubsets, kid, kid_unbiased};
pub use manifold::{PrecisionRecall, precision_recall};
pub use neighbours::{Neighbour, nearest};
