//! The parts of `train`.

pub mod curves;
pub mod export;
pub mod options;
pub mod samples;
