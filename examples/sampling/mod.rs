//! What all sampling commands share: choices as text, the network they are made for, and the run.

pub(crate) mod choice;
pub(crate) mod embedded;
pub(crate) mod files;
pub(crate) mod flags;
pub(crate) mod network;
pub(crate) mod ready;
pub(crate) mod settings;
pub(crate) mod stop;
