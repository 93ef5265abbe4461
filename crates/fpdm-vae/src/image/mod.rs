//! Pictures: files to tensors in [-1, 1] and back.

mod crop;
mod grid;
mod psnr;
mod read;
mod resample;
mod tensor;
mod write;

pub use crop::center_crop;
pub use grid::grid;
pub use psnr::psnr;
pub use read::{DEFAULT_MAX_PIXELS, decode, read};
pub use resample::{Filter, resample};
pub use tensor::{Picture, from_tensor, to_tensor};
pub use write::write_png;
