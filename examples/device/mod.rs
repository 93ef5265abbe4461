//! Where a command computes.

use anyhow::{Result, bail};
use candle_core::Device;
use candle_core::utils::{cuda_is_available, metal_is_available};

/// `auto` takes an accelerator if there is one; else `cpu`, `cuda` or `metal`.
///
/// # Errors
/// Names the flag: an unknown name, or an accelerator that is not there.
pub(crate) fn open(text: &str) -> Result<Device> {
    let wanted = match text {
        "auto" if cuda_is_available() => "cuda",
        "auto" if metal_is_available() => "metal",
        "auto" => "cpu",
        other => other,
    };
    let opened = match wanted {
        "cpu" => return Ok(Device::Cpu),
        #[cfg(feature = "cuda")]
        "cuda" => fpdm_kernels::cuda::cuda(0, Default::default()),
        #[cfg(not(feature = "cuda"))]
        "cuda" => Device::new_cuda(0),
        "metal" => Device::new_metal(0),
        other => bail!("--device: `{other}` is none of auto, cpu, cuda, metal"),
    };
    opened.or_else(|error| {
        let first = error.to_string().lines().next().unwrap_or_default().to_owned();
        bail!("--device {text}: {first}; build with `--features {wanted}` on a machine that has one, or use cpu")
    })
}
