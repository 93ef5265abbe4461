#![doc = include_str!("../README.md")]

mod check;
mod conv;
mod files;
mod fresh;
mod group_norm;
pub mod image;
mod kl;
mod norms;
mod open;
mod pixels;
mod round_trip;
mod sliced;
mod strict;
mod tiled;
mod tiny;

pub use fpdm_core::{Error, LatentCodec, Moments, Result};
pub use fresh::fresh;
pub use kl::{AutoencoderKl, KlConfig, Posterior, TiledKl};
pub use open::{open, open_bytes, open_tiled, open_with};
pub use pixels::Pixels;
pub use round_trip::round_trip;
pub use sliced::Sliced;
pub use tiled::{Tiled, Tiling};
pub use tiny::{TinyAutoencoder, TinyConfig};
