//! What a codec keeps of the images held out.

use std::path::Path;

use anyhow::Result;
use candle_core::Tensor;
use fpdm_vae::LatentCodec;
use fpdm_vae::image::{from_tensor, grid, psnr, write_png};

use super::loss::roughness;

/// Images of an evaluation that are shown.
const SHOWN: usize = 4;

/// Means over images.
pub(crate) struct Kept {
    pub images: usize,
    /// In dB.
    pub psnr: f64,
    /// The mean magnitude of the decoded pictures' gradients over that of the originals': below 1 is blur, above is noise.
    pub gradient_ratio: f64,
}

/// Decodes `latents(x)` of each image of `x` `(N, 3, H, W)`, and writes some before/after pairs.
pub(crate) fn held_out(
    codec: &dyn LatentCodec,
    latents: impl Fn(&Tensor) -> Result<Tensor>,
    x: &Tensor,
    pairs: &Path,
) -> Result<Kept> {
    let images = x.dim(0)?;
    let (mut decibels, mut rough, mut shown) = (0., [0.; 2], Vec::new());
    for i in 0..images {
        let x = x.narrow(0, i, 1)?;
        let y = codec.decode(&latents(&x)?)?.clamp(-1., 1.)?;
        decibels += psnr(&x, &y)?;
        for (sum, picture) in rough.iter_mut().zip([&y, &x]) {
            *sum += f64::from(roughness(picture)?.to_scalar::<f32>()?);
        }
        if i < SHOWN {
            shown.append(&mut from_tensor(&Tensor::cat(&[x, y], 0)?)?);
        }
    }
    write_png(pairs, &grid(&shown, 2, 4)?)?;
    Ok(Kept { images, psnr: decibels / images as f64, gradient_ratio: rough[0] / rough[1] })
}
