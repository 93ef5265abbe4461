#![doc = include_str!("../README.md")]

mod conv;
mod distance;
mod efficientnet;
mod extractor;
mod inception;
mod resize;
mod weights;

pub use distance::{
    FrechetTo, Gaussian, Kid, KidSubsets, Neighbour, PrecisionRecall, frechet_distance, kid, kid_unbiased, nearest,
    precision_recall,
};
pub use efficientnet::EfficientNetLite0;
pub use extractor::{FeatureExtractor, Features, open};
pub use fpdm_core::{Error, Result};
pub use inception::InceptionV3;
pub use resize::{Filter, resize};
