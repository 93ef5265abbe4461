//! Weights from a Hub repository, a local folder or one file.
//!
//! [`Source`] is what a user writes (`org/name@revision`, a folder, a file), [`Hub`] fetches and [`Located`] is what
//! was found: the weight files, and `config.json` and `diffusion.json` beside them. [`Checkpoint::open`](crate::checkpoint::Checkpoint::open) reads them.
//!
//! ```no_run
//! use fpdm_core::{checkpoint::{Checkpoint, Which}, hub::{Hub, Source}};
//!
//! let source = Source::parse("org/fpdm-s-2@main")?;
//! let found = source.locate(&Hub::from_env()?, &mut |p| eprintln!("{}: {} bytes", p.file, p.received))?;
//! let weights = Checkpoint::from_files(&found.weights, Which::Ema)?;
//! # fpdm_core::Result::<()>::Ok(())
//! ```

mod cache;
mod client;
mod download;
mod http;
mod settings;
mod source;

pub use client::{HubClient, Progress, RemoteFile};
pub use settings::Hub;
pub use source::{Located, Source};
