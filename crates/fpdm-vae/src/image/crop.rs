//! The square that networks are trained on.

use fpdm_core::{Error, Result};

use super::read::DEFAULT_MAX_PIXELS;
use super::resample::{Filter, resample};
use super::tensor::Picture;

/// The centre square at `side` by `side`: halved with a box filter while the shorter side is at least twice too
/// large, then bicubic to the size, then cut.
///
/// # Reference
///
/// Dhariwal and Nichol 2021, arXiv 2105.05233, their published loader, which DiT and FPDM use.
///
/// # Errors
/// [`Error::Config`] if `side` is 0, or the picture is so long that at this size it would have more than
/// [`DEFAULT_MAX_PIXELS`] pixels before it is cut.
pub fn center_crop(picture: &Picture, side: usize) -> Result<Picture> {
    if side == 0 {
        return Err(Error::config("side", "0; give a positive number of pixels"));
    }
    let mut picture = picture.clone();
    while picture.width().min(picture.height()) / 2 >= side {
        picture = resample(&picture, picture.width() / 2, picture.height() / 2, Filter::Box)?;
    }
    let scale = side as f64 / picture.width().min(picture.height()) as f64;
    // Python rounds halves to even.
    let [width, height] = [picture.width(), picture.height()].map(|n| (n as f64 * scale).round_ties_even() as usize);
    // A line of a million pixels is a small file, and at 256 times its size it would fill the memory.
    if width.checked_mul(height).is_none_or(|pixels| pixels as u64 > DEFAULT_MAX_PIXELS) {
        let why =
            format!("a picture of {}x{} would be {width}x{height} before it is cut", picture.width(), picture.height());
        return Err(Error::config("side", format!("{side}: {why}; cut it first, or take a smaller side")));
    }
    let picture = resample(&picture, width, height, Filter::Bicubic)?;
    picture.crop((width - side) / 2, (height - side) / 2, side, side)
}
