//! The parts of `train`.

pub(crate) mod curves;
pub(crate) mod export;
pub(crate) mod options;
pub(crate) mod samples;
