//! Whether a device has the memory for a load.

use tch::Device;

use crate::torch::cuda::DeviceMemory;
use crate::torch::{cpu_allocator, cuda, memory};
use diffusion_core::{Error, Result};

/// Host memory that a load leaves free, for models that run.
const HOST_RESERVE: u64 = 256 << 20;
/// GPU memory that a load leaves free if nothing else is configured, or a twentieth of the GPU's memory if that is more.
/// A running model needs the memory: about 0.4 GB for CUDA's context, 1 to 2 GB for the UNet's activations at 512x512.
const GPU_RESERVE: u64 = 1536 << 20;

/// Checks that the host has `needed` more bytes next to the `reserved` ones of other loads; `mapped` of the needed bytes are
/// in files that are already mapped.
pub fn check_host(needed: u64, reserved: u64, mapped: u64) -> Result<()> {
    // A model that is in the store loads on a full device.
    if needed == 0 {
        return Ok(());
    }
    let check = || match memory::available(mapped) {
        Some(free) => check_free(needed, free, HOST_RESERVE.saturating_add(reserved), "the host"),
        None => Ok(()),
    };
    // What libtorch keeps counts as used.
    check().or_else(|_| {
        cpu_allocator::trim();
        check()
    })
}

/// Checks that a GPU has `needed` more bytes next to the `reserved` ones of other loads. What libtorch caches counts as used,
/// so the cache is freed before a load is refused.
pub fn check_gpu(needed: u64, reserved: u64, reserve: Option<u64>, index: usize) -> Result<()> {
    if needed == 0 {
        return Ok(());
    }
    let check = || {
        let DeviceMemory { free, total, .. } = cuda::device_memory(index)?;
        let reserve = reserve.unwrap_or_else(|| GPU_RESERVE.max(total / 20));
        check_free(needed, free, reserve.saturating_add(reserved), &format!("GPU {index}"))
    };
    match check() {
        Err(Error::OutOfMemory(_)) => {
            cuda::empty_cache(Device::Cuda(index))?;
            check()
        }
        result => result,
    }
}

fn check_free(needed: u64, free: u64, reserve: u64, place: &str) -> Result<()> {
    let available = free.saturating_sub(reserve);
    if needed <= available {
        return Ok(());
    }
    Err(Error::out_of_memory(format!(
        "loading the weights needs {} MiB on {place}, but only {} MiB are available (with {} MiB in reserve)",
        needed.div_ceil(1 << 20),
        available >> 20,
        reserve >> 20
    )))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn check_host_beyond_free_memory_is_out_of_memory() {
        let error = check_host(u64::MAX, 0, 0).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory(_)), "{error}");
        check_host(0, 0, 0).unwrap();
    }

    #[test]
    fn check_free_keeps_the_reserve() {
        check_free(3, 10, 7, "here").unwrap();
        let error = check_free(3, 9, 7, "here").unwrap_err();
        assert!(error.to_string().contains("on here"), "{error}");
        assert!(check_free(1, 5, 7, "here").is_err());
    }
}
