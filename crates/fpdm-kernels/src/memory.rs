//! What the allocator does with freed memory.

/// Asks the allocator to keep freed memory instead of returning it to the system, for the whole process.
///
/// A network on the CPU allocates and frees the same megabytes over and over. The C library's default is to return
/// large blocks at once, and a good part of a short operation then goes into page faults. A program that does little
/// else than run a network gains a few percent by calling this once at the start; the price is that its memory never
/// shrinks. Does nothing with other allocators than glibc's.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use std::ffi::c_int;
        unsafe extern "C" {
            fn mallopt(param: c_int, value: c_int) -> c_int;
        }
        const TRIM_THRESHOLD: c_int = -1;
        const MMAP_THRESHOLD: c_int = -3;
        // The largest that glibc takes for the second. Failure leaves the defaults, which are only slower.
        unsafe {
            mallopt(TRIM_THRESHOLD, c_int::MAX);
            mallopt(MMAP_THRESHOLD, 32 << 20);
        }
    }
}
