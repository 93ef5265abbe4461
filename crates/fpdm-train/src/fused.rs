//! The optimiser's step and the averages in one pass over memory, where there is a kernel for it.

use fpdm_core::Result;

use crate::{AdamW, Ema};

/// One step of `adam` and of every average; `true` if it was done here.
///
/// Buffers are overwritten in place: 86 million weights with their moments would otherwise be there twice.
#[cfg(feature = "cuda")]
pub(crate) fn step(adam: &mut AdamW, ema: &mut [Ema], gradient: &candle_core::Tensor, lr: f64) -> Result<bool> {
    use fpdm_kernels::cuda::{Adamw, adamw};

    if !adam.master.device().is_cuda() {
        return Ok(false);
    }
    let config = adam.config;
    let how = Adamw {
        lr,
        beta1: config.beta1,
        beta2: config.beta2,
        eps: config.eps,
        weight_decay: config.weight_decay,
        step: adam.steps + 1,
        // The trainer has clipped already.
        max_norm: f64::INFINITY,
    };
    // The kernel takes four averages; further ones follow by themselves.
    let (first, rest) = ema.split_at_mut(ema.len().min(4));
    let averages: Vec<_> = first.iter().map(|e| (e.decay, &e.average)).collect();
    adamw(how, [&adam.master, &adam.exp_avg, &adam.exp_avg_sq, &gradient.detach()], &averages, None)?;
    adam.steps += 1;
    for ema in rest {
        ema.update(&adam.master)?;
    }
    Ok(true)
}

/// Only GPUs have such a kernel.
#[cfg(not(feature = "cuda"))]
pub(crate) fn step(_: &mut AdamW, _: &mut [Ema], _: &candle_core::Tensor, _: f64) -> Result<bool> {
    Ok(false)
}

/// While it lives, candle keeps the shapes and strides that its kernels ask for on the GPU, instead of sending them with
/// every launch. Nothing else may be sent meanwhile: whatever is small would be kept too, for ever.
#[cfg(feature = "cuda")]
pub(crate) fn quick_launches(device: &candle_core::Device) -> Result<Option<impl Sized>> {
    match device {
        candle_core::Device::Cuda(device) => Ok(Some(device.enable_cuda_graph_htod_cache())),
        _ => Ok(None),
    }
}

/// Nothing to keep.
#[cfg(not(feature = "cuda"))]
pub(crate) fn quick_launches(_: &candle_core::Device) -> Result<Option<()>> {
    Ok(None)
}
