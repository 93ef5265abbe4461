//! The archives of `torch.save`.

mod archive;
mod machine;
mod state;
mod value;
mod write;

pub(super) use archive::Torch;
pub(super) use write::write;
