/// The most memory that this process has had resident, in bytes, where the system says so (Linux).
///
/// On the CPU it is the peak of training too; an accelerator's memory is not in it.
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}
