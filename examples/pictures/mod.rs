//! What the two commands that make pictures share.

pub(crate) mod options;
mod png;
pub(crate) mod run;
