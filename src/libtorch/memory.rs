//! The host's allocator.

/// Gives memory that was freed back to the system, which keeps it for the process otherwise: after many tensors of
/// middling size that is several hundred megabytes.
#[cfg(target_env = "gnu")]
pub fn trim() {
    // SAFETY: takes no pointer and may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Only the GNU C library keeps it so.
#[cfg(not(target_env = "gnu"))]
pub fn trim() {}
