//! The parts of `evaluate`: what is compared, its features, the distances, and what is shown.

pub(crate) mod features;
pub(crate) mod options;
pub(crate) mod report;
pub(crate) mod set;
pub(crate) mod sheet;
