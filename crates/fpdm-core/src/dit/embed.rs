//! From latents to tokens and back.

use candle_core::{DType, Device, Tensor};

use super::config::Config;
use super::linear::Linear;
use super::parameters::Weights;
use crate::{Error, Result};

/// The fixed sine-cosine position embedding of a `h × w` grid, `(1, h·w, d)` in `dtype`.
///
/// The first half of a row encodes the column (x), the second the row (y), each as sines then cosines of
/// `10000^(-4 i / d)`: the order of the published tables, whose code names the halves the other way round.
///
/// # Errors
/// [`Error::Config`] if `d` is no multiple of 4.
pub fn position_embedding(h: usize, w: usize, d: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    if !d.is_multiple_of(4) {
        return Err(Error::config("hidden_size", format!("{d} is no multiple of 4")));
    }
    let quarter = d / 4;
    let mut table = Vec::with_capacity(h * w * d);
    for (row, column) in (0..h * w).map(|i| (i / w, i % w)) {
        for position in [column, row] {
            let angle = |i: usize| position as f64 / 10000f64.powf(i as f64 / quarter as f64);
            table.extend((0..quarter).map(|i| angle(i).sin()));
            table.extend((0..quarter).map(|i| angle(i).cos()));
        }
    }
    Ok(Tensor::from_vec(table, (1, h * w, d), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
}

/// Patch and position embedding, and its inverse.
#[derive(Clone, Debug)]
pub(super) struct Embedder {
    config: Config,
    patch: Linear,
    positions: Tensor,
}

impl Embedder {
    pub(super) fn read(weights: &Weights, config: &Config) -> Result<Self> {
        let mut patch = Linear::read(weights, "x_embedder.proj");
        patch.w = patch.w.flatten_from(1)?; // (D, C p p): a convolution of stride p is a matrix product on patches
        let positions = match weights.find("pos_embed") {
            Some(stored) => stored,
            None => {
                let (h, w) = config.grid();
                position_embedding(h, w, config.hidden_size, patch.w.dtype(), patch.w.device())?
            }
        };
        Ok(Self { config: config.clone(), patch, positions })
    }

    pub(super) fn dtype(&self) -> DType {
        self.patch.w.dtype()
    }

    pub(super) fn device(&self) -> &Device {
        self.patch.w.device()
    }

    /// Refuses latents that are not `(B, C, H, W)`, or unlike the weights. The batch, where they fit.
    pub(super) fn check(&self, x: &Tensor) -> Result<usize> {
        let (c, [height, width]) = (self.config.in_channels, self.config.input_size);
        let b = match *x.dims() {
            [b, xc, xh, xw] if b > 0 && (xc, xh, xw) == (c, height, width) => b,
            _ => {
                return Err(Error::Shape {
                    what: "latents `x` (B, C, H, W)".into(),
                    expected: format!("[B, {c}, {height}, {width}] with B > 0 (in_channels and input_size)"),
                    got: format!("{:?}", x.dims()),
                });
            }
        };
        if x.dtype() != self.dtype() {
            return Err(Error::shape("dtype of latents `x` (convert with `to_dtype`)", self.dtype(), x.dtype()));
        }
        if !x.device().same_device(self.device()) {
            return Err(Error::shape(
                "device of latents `x` (move with `to_device`)",
                self.device().location(),
                x.device().location(),
            ));
        }
        Ok(b)
    }

    /// The layer from patches to tokens; its weight is `(D, C p p)`.
    pub(super) fn patch(&self) -> &Linear {
        &self.patch
    }

    /// Checks `x` and turns `(B, C, H, W)` into tokens with positions, `(B, T, D)`.
    pub(super) fn latents(&self, x: &Tensor) -> Result<Tensor> {
        self.tokens(&self.patch, &self.patches(x)?)
    }

    /// Checks `x` and cuts `(B, C, H, W)` into patches, `(B, T, C p p)`.
    pub(super) fn patches(&self, x: &Tensor) -> Result<Tensor> {
        let (b, c) = (self.check(x)?, self.config.in_channels);
        let (p, (h, w)) = (self.config.patch_size, self.config.grid());
        let patches = x.reshape(&[b, c, h, p, w, p])?.permute([0, 2, 4, 1, 3, 5])?;
        Ok(patches.reshape((b, h * w, c * p * p))?.contiguous()?)
    }

    /// Patches to tokens by `patch`, with positions.
    pub(super) fn tokens(&self, patch: &Linear, patches: &Tensor) -> Result<Tensor> {
        let tokens = patch.forward(patches)?;
        // A row for each sample: the same addition as a bias, which Candle's broadcast would do in several passes, and
        // with a gradient for positions that nobody wants.
        let rows = tokens.reshape((tokens.dim(0)?, self.positions.elem_count()))?;
        Ok(fpdm_kernels::bias(&rows, &self.positions.flatten_all()?)?.reshape(tokens.shape())?)
    }

    /// Token outputs `(B, T, p p O)` back to an image `(B, O, H, W)`.
    pub(super) fn unpatchify(&self, tokens: &Tensor) -> Result<Tensor> {
        let (p, (h, w)) = (self.config.patch_size, self.config.grid());
        let (b, _, last) = tokens.dims3()?;
        let o = last / (p * p);
        let image = tokens.reshape(&[b, h, w, p, p, o])?.permute([0, 5, 1, 3, 2, 4])?;
        Ok(image.reshape((b, o, h * p, w * p))?)
    }
}

/// Root mean square over the last dimension, for tests of scale.
#[cfg(test)]
fn rms(x: &Tensor) -> Result<f64> {
    Ok(x.to_dtype(DType::F64)?.sqr()?.mean_all()?.sqrt()?.to_scalar()?)
}

#[cfg(test)]
mod tests {
    use candle_core::D;

    use super::*;

    #[test]
    fn positions_encode_x_first() -> Result<()> {
        let table = position_embedding(3, 5, 8, DType::F64, &Device::Cpu)?.reshape((3, 5, 8))?;
        let same =
            |a: &Tensor, b: &Tensor| -> Result<bool> { Ok((a - b)?.abs()?.max_all()?.to_scalar::<f64>()? == 0.0) };
        let (first, second) = (table.narrow(D::Minus1, 0, 4)?, table.narrow(D::Minus1, 4, 4)?);
        assert!(same(&first.get(0)?, &first.get(2)?)?, "the first half does not depend on the row");
        assert!(same(&second.narrow(1, 0, 1)?, &second.narrow(1, 4, 1)?)?, "the second half depends on the row alone");
        assert!((rms(&table)? - 0.5f64.sqrt()).abs() < 1e-12, "sin² + cos² = 1");
        assert_eq!(table.get(0)?.get(0)?.to_vec1::<f64>()?, [0., 0., 1., 1., 0., 0., 1., 1.]);
        Ok(())
    }
}
