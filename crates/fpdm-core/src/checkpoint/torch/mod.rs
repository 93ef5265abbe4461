//! The archives of `torch.save`.

mod archive;
mod machine;
mod reduce;
mod state;
#[cfg(test)]
mod tests;
mod value;
mod write;

pub(super) use archive::Torch;
pub(super) use write::write;
