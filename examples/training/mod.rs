//! The parts of `train`.

pub(crate) mod curves;
pub(crate) mod data;
pub(crate) mod export;
pub(crate) mod gradient;
pub(crate) mod loss;
pub(crate) mod network;
pub(crate) mod options;
pub(crate) mod samples;
pub(crate) mod summary;
