//! Group normalisation, followed by SiLU where the network has one.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};
use fpdm_core::Result;
use fpdm_kernels::{channel_affine, group_moments};

use crate::norms::{Norms, Statistics};

/// Wu and He 2018, arXiv 1803.08494, equation 7. Statistics are taken in `f32` whatever the dtype.
#[derive(Clone, Debug)]
pub(crate) struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
}

/// What diffusers uses for every norm of `AutoencoderKL`.
const EPS: f64 = 1e-6;

impl GroupNorm {
    pub(crate) fn new(vb: VarBuilder, channels: usize, groups: usize) -> Result<Self> {
        let weight = vb.get_with_hints(channels, "weight", Init::Const(1.))?;
        let bias = vb.get_with_hints(channels, "bias", Init::Const(0.))?;
        Ok(Self { weight, bias, groups })
    }

    /// `(B, C, H, W)` → the same.
    pub(crate) fn forward(&self, x: &Tensor, norms: &mut Norms) -> Result<Tensor> {
        self.run(x, norms, false)
    }

    /// `silu(norm(x))`
    pub(crate) fn silu(&self, x: &Tensor, norms: &mut Norms) -> Result<Tensor> {
        self.run(x, norms, true)
    }

    fn run(&self, x: &Tensor, norms: &mut Norms, silu: bool) -> Result<Tensor> {
        let (b, c, _, _) = x.dims4()?;
        let Statistics { mean, variance, .. } = norms.of(x, |part| Statistics::of(part, self.groups))?;
        let within = mean.dtype();
        let scale = (variance + EPS)?.sqrt()?.recip()?; // (B, G, 1)
        // One factor and one summand a channel: two passes over the picture instead of four.
        let channels = (1, self.groups, c / self.groups);
        let weight = self.weight.to_dtype(within)?.reshape(channels)?;
        let bias = self.bias.to_dtype(within)?.reshape(channels)?;
        let factor = weight.broadcast_mul(&scale)?; // (B, G, C/G)
        let summand = bias.broadcast_sub(&factor.broadcast_mul(&mean)?)?;
        Ok(channel_affine(x, &factor.reshape((b, c))?, &summand.reshape((b, c))?, silu)?)
    }
}

impl Statistics {
    /// Of each sample and group of `x` `(B, C, H, W)`.
    fn of(x: &Tensor, groups: usize) -> Result<Self> {
        let (_, _, h, w) = x.dims4()?;
        let (mean, variance) = group_moments(x, groups)?;
        Ok(Self { mean, variance, pixels: h * w })
    }
}
