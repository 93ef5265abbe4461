//! How much memory a run has taken.

use candle_core::Device;

/// The most memory that a run on `device` has taken so far, in bytes, where it is known: on the CPU
/// [`peak_resident_bytes`], on a CUDA device what tensors have taken of its memory pool.
pub fn peak_bytes(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return fpdm_kernels::cuda::peak_bytes(device);
    }
    if device.is_cpu() { peak_resident_bytes() } else { None }
}

/// The most memory that this process has had resident, in bytes, where the system says so (Linux).
///
/// On the CPU it is the peak of training too; an accelerator's memory is not in it.
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}
