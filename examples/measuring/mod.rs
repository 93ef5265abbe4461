//! The parts of `claims`: which settings, their samples, what these are worth, and tables.

pub(crate) mod cells;
pub(crate) mod costs;
pub(crate) mod line;
pub(crate) mod markdown;
pub(crate) mod measure;
pub(crate) mod models;
pub(crate) mod options;
pub(crate) mod score;
pub(crate) mod table;
