//! The parts of `train_codec`.

pub(crate) mod critic;
pub(crate) mod evaluate;
pub(crate) mod export;
pub(crate) mod latents;
pub(crate) mod log;
pub(crate) mod loss;
pub(crate) mod options;
pub(crate) mod pictures;
pub(crate) mod run;
