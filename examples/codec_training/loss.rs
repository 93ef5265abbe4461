//! How far a decoded picture is from the original.

use anyhow::Result;
use candle_core::{DType, Tensor};

use super::options::{Norm, Options};

/// Levels of the Laplacian pyramid, as far as the sides can be halved.
const LEVELS: usize = 4;

/// Side of the patches whose texture is compared.
const PATCH: usize = 8;

/// The parts of the loss, not yet weighted; each is a number.
pub(crate) struct Parts {
    pub pixel: Tensor,
    pub gradient: Tensor,
    pub laplacian: Tensor,
    pub texture: Tensor,
}

impl Parts {
    /// Of `y` from the original `x`, both `(B, 3, H, W)`. Parts of weight 0 are not computed.
    pub(crate) fn of(options: &Options, y: &Tensor, x: &Tensor) -> Result<Self> {
        let (y, x) = (y.to_dtype(DType::F32)?, x.to_dtype(DType::F32)?);
        let zero = || Tensor::zeros((), DType::F32, x.device());
        let apart = (&y - &x)?;
        let pixel = match options.pixel {
            Norm::L1 => apart.abs()?,
            Norm::L2 => apart.sqr()?,
        };
        Ok(Self {
            pixel: pixel.mean_all()?,
            // Differences and pyramids are linear: those of the distance are the distances of those.
            gradient: if options.gradient_weight > 0. { roughness(&apart)? } else { zero()? },
            laplacian: if options.laplacian_weight > 0. { laplacian(&apart)? } else { zero()? },
            texture: if options.texture_weight > 0. { texture(&y, &x)? } else { zero()? },
        })
    }

    /// The weighted sum.
    pub(crate) fn sum(&self, options: &Options) -> Result<Tensor> {
        let sum = (&self.pixel * options.pixel_weight)? + (&self.gradient * options.gradient_weight)?;
        let sum = (sum? + (&self.laplacian * options.laplacian_weight)?)?;
        Ok((sum + (&self.texture * options.texture_weight)?)?)
    }
}

/// Differences of neighbours, to the right and below.
fn differences(x: &Tensor) -> Result<[Tensor; 2]> {
    let difference = |dim: usize| -> Result<Tensor> {
        let side = x.dim(dim)? - 1;
        Ok((x.narrow(dim, 1, side)? - x.narrow(dim, 0, side)?)?)
    };
    Ok([difference(3)?, difference(2)?])
}

/// The mean magnitude of a picture's gradient: of the difference between neighbours, over both directions.
pub(crate) fn roughness(x: &Tensor) -> Result<Tensor> {
    let [across, down] = differences(x)?;
    Ok(((across.abs()?.mean_all()? + down.abs()?.mean_all()?)? * 0.5)?)
}

/// The mean magnitude over the levels of a Laplacian pyramid (Burt and Adelson 1983), with the box as its filter.
fn laplacian(x: &Tensor) -> Result<Tensor> {
    let mut sum = Tensor::zeros((), DType::F32, x.device())?;
    let mut x = x.clone();
    for _ in 0..LEVELS {
        let (b, c, h, w) = x.dims4()?;
        if h % 2 != 0 || w % 2 != 0 {
            break;
        }
        let halves = x.reshape((b, c, h / 2, 2, w / 2, 2))?;
        let coarse = halves.mean_keepdim(5)?.mean_keepdim(3)?;
        sum = (sum + halves.broadcast_sub(&coarse)?.abs()?.mean_all()?)?;
        x = coarse.reshape((b, c, h / 2, w / 2))?;
    }
    Ok((sum + x.abs()?.mean_all()?)?)
}

/// How far the roughness of each patch is from the original's: detail in the wrong place costs nothing here, detail
/// that is missing does.
fn texture(y: &Tensor, x: &Tensor) -> Result<Tensor> {
    let local = |t: &Tensor, dim: usize| -> Result<Tensor> {
        let t = differences(t)?[3 - dim].abs()?;
        let (b, c, h, w) = t.dims4()?;
        let (rows, columns) = (h / PATCH, w / PATCH);
        let whole = t.narrow(2, 0, rows * PATCH)?.narrow(3, 0, columns * PATCH)?;
        Ok(whole.reshape((b, c, rows, PATCH, columns, PATCH))?.mean_keepdim(5)?.mean_keepdim(3)?)
    };
    let mut sum = Tensor::zeros((), DType::F32, x.device())?;
    for dim in [2, 3] {
        sum = (sum + (local(y, dim)? - local(x, dim)?)?.abs()?.mean_all()?)?;
    }
    Ok((sum * 0.5)?)
}
