//! Convolutions with the batch norm behind them folded in.

use candle_core::{DType, Device, Tensor};
use fpdm_core::Result;
use fpdm_kernels::{Conv2d, conv2d, depthwise_conv2d};

use crate::weights::Weights;

/// What batch norm adds to the variance, in both networks.
const EPSILON: f64 = 1e-3;

/// A convolution and the batch norm that follows it: `w g/s` and `b - m g/s` with `s = sqrt(var + eps)`.
#[derive(Clone, Debug)]
pub(crate) struct Folded {
    weight: Tensor,
    bias: Tensor,
}

impl Folded {
    /// `conv` and `norm` are names; `shape` is (outputs, inputs, height, width) of the kernel. Folded in f64.
    pub(crate) fn new(
        weights: &mut Weights,
        conv: &str,
        norm: &str,
        shape: [usize; 4],
        device: &Device,
    ) -> Result<Self> {
        let weight = weights.take(&format!("{conv}.weight"), &shape)?;
        let mut of = |part: &str| weights.take(&format!("{norm}.{part}"), &shape[..1]);
        let (gain, bias) = (of("weight")?, of("bias")?);
        let (mean, variance) = (of("running_mean")?, of("running_var")?);
        let gain = (gain / (variance + EPSILON)?.sqrt()?)?;
        let weight = weight.broadcast_mul(&gain.reshape((shape[0], 1, 1, 1))?)?;
        let bias = (bias - (mean * gain)?)?;
        let put = |t: Tensor| -> Result<Tensor> { Ok(t.to_dtype(DType::F32)?.to_device(device)?) };
        Ok(Self { weight: put(weight)?, bias: put(bias)? })
    }

    /// `(B, I, H, W)` → `(B, O, H', W')`; `residual` like the result is added before the activation.
    pub(crate) fn forward(&self, x: &Tensor, residual: Option<&Tensor>, how: Conv2d) -> Result<Tensor> {
        Ok(conv2d(x, &self.weight, Some(&self.bias), residual, how)?)
    }

    /// `(B, C, H, W)` → `(B, C, H', W')` with one kernel a channel.
    pub(crate) fn forward_depthwise(&self, x: &Tensor, how: Conv2d) -> Result<Tensor> {
        Ok(depthwise_conv2d(x, &self.weight, Some(&self.bias), how)?)
    }
}
