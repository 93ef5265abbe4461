//! What the sampling commands share: choices as text, the network they are made for, the run, and the files.

pub mod choice;
pub mod classes;
pub mod files;
pub mod network;
pub mod options;
pub mod run;
pub mod stop;
