//! Weights on disk: every published layout under one set of names.
//!
//! [`Checkpoint::open`] reads safetensors (memory mapped, sharded too) and `torch.save` archives, finds out the
//! [`Layout`] by the names inside and serves the tensors under the names of the published FPDM and DiT code,
//! whatever the file calls them.
//!
//! | layout | names | file |
//! |---|---|---|
//! | [`Layout::Fpdm`] | `blocks_pre.N`, `block_fixed_point`, `blocks_post.N` | ours; the published trainer's `.pt` (`model`, `ema`) |
//! | [`Layout::Dit`] | `blocks.N` | the released DiT `.pt` |
//! | [`Layout::DiffusersDit`] | `transformer_blocks.N` | diffusers' `DiTTransformer2DModel` |
//!
//! A file is input, not code: a `.pt` is read by a small pickle machine that builds tensors and plain data and calls
//! nothing, and a damaged or hostile file is an [`Error::Weights`](crate::Error::Weights) that names it.
//!
//! ```no_run
//! use candle_core::{DType, Device};
//! use fpdm_core::checkpoint::{Checkpoint, Which};
//!
//! let weights = Checkpoint::open("train_checkpoint.pt", Which::Ema)?;
//! weights.check_finite()?;
//! let vb = weights.var_builder(DType::BF16, &Device::Cpu);
//! # let _ = vb;
//! # fpdm_core::Result::<()>::Ok(())
//! ```

mod check;
mod container;
mod convert;
mod diffusers;
mod infer;
mod layout;
mod open;
mod safetensors;
mod tensors;
mod torch;
mod write;

pub(crate) use check::{Entry, problems};
pub(crate) use container::Container;
pub use infer::{Untold, diffusers_config};
pub use layout::Layout;
pub use open::{Checkpoint, Which};
pub(crate) use safetensors::Safetensors;
pub use tensors::read_tensors;
pub use write::{write_safetensors, write_text, write_torch};
