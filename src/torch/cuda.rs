//! CUDA's devices, found at run time.
//!
//! The backend links only the CPU libraries of libtorch, so one file works on machines with and without a GPU. Opening
//! `libtorch_cuda.so` registers the CUDA kernels with the dispatcher in the process.

use std::ffi::{c_char, c_int};
use std::sync::atomic::{AtomicU64, Ordering};

use super::generator::check_status;
use super::{dlopen, library};
use diffusion_core::{Error, Result};

pub use super::library::{LIBRARY_PATH_VARIABLE, is_linked};

unsafe extern "C" {
    fn td_cuda_set_device(index: c_int) -> *mut c_char;
    fn td_cuda_empty_cache() -> *mut c_char;
    fn td_cuda_memory(index: c_int, free: *mut usize, total: *mut usize, reserved: *mut usize) -> *mut c_char;
    fn td_cuda_out_of_memory_count(index: c_int, count: *mut i64) -> *mut c_char;
}

/// Opens CUDA if this machine has it. Must be called before libtorch computes anything.
///
/// libtorch asks once in the life of a process whether CUDA is there, at the first convolution at the latest
/// (`at::detail::getCUDAHooks`), and remembers the answer. A model on the CPU would otherwise disable every GPU. A failure
/// is not reported: the first model on a GPU tries again and gets the error.
pub fn open_early() {
    if library::is_expected() && library::load().is_ok() {
        let _ = tch::Cuda::device_count();
    }
}

/// Loads libtorch's CUDA library and returns the device `index`.
///
/// The library is searched in the folder of [`LIBRARY_PATH_VARIABLE`], in `cuda/` next to libtorch, next to libtorch, and
/// in the paths of the system's loader.
///
/// # Errors
/// `Unsupported` if the library or one of its dependencies is missing, with the paths; if the device does not exist, with
/// the reason of CUDA and the versions of its driver and runtime.
pub fn device(index: u32) -> Result<tch::Device> {
    library::load()?;
    let count = tch::Cuda::device_count();
    if i64::from(index) >= count {
        let reason = if count == 0 { no_device_reason() } else { String::new() };
        return Err(Error::unsupported(format!(
            "GPU {index} does not exist; CUDA shows {count} devices{reason}"
        )));
    }
    Ok(tch::Device::Cuda(index as usize))
}

/// Returns why CUDA shows no device: its own error, and the versions that must fit each other.
fn no_device_reason() -> String {
    // SAFETY: passes a number; libtorch throws into the shim, and the thread keeps its device.
    let error = check_status(unsafe { td_cuda_set_device(0) }).err();
    let error = error.map(|error| format!(": {error}")).unwrap_or_default();
    let version = |name| {
        let mut version = 0;
        // SAFETY: both functions take a place for one number (`cuda_runtime_api.h` of CUDA 13).
        let status = unsafe { dlopen::runtime_function::<extern "C" fn(*mut c_int) -> c_int>(name) }
            .map(|get| get(&mut version));
        (status == Some(0) && version > 0).then(|| format!("CUDA {}.{}", version / 1000, version % 1000 / 10))
    };
    format!(
        "{error} (the driver supports {}, libtorch needs {})",
        version(c"cudaDriverGetVersion").unwrap_or_else(|| "no CUDA".to_owned()),
        version(c"cudaRuntimeGetVersion").unwrap_or_else(|| "CUDA".to_owned())
    )
}

/// Returns the compute capability of a device, for example (7, 5) for a T4; `None` if it is unknown.
pub fn compute_capability(index: usize) -> Option<(c_int, c_int)> {
    type GetAttribute = extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
    let index = device_index(index).ok()?;
    // SAFETY: the type is that of `cuda_runtime_api.h` of CUDA 13.
    let get = unsafe { dlopen::runtime_function::<GetAttribute>(c"cudaDeviceGetAttribute") }?;
    let attribute = |attribute| {
        let mut value = 0;
        (get(&mut value, attribute, index) == 0).then_some(value)
    };
    // `cudaDevAttrComputeCapabilityMajor` and `-Minor` of `driver_types.h`.
    Some((attribute(75)?, attribute(76)?))
}

/// Returns the number of a CUDA device as libtorch takes it.
///
/// # Errors
/// `Internal` for a number out of range.
pub(super) fn device_index(index: usize) -> Result<c_int> {
    c_int::try_from(index).map_err(|_| Error::internal("a CUDA device index out of range"))
}

/// Makes the device current on this thread; does nothing for the CPU.
///
/// # Errors
/// Errors of CUDA, as `Internal`.
pub fn make_current(device: tch::Device) -> Result<()> {
    match device {
        // SAFETY: passes a number; libtorch checks it and throws into the shim.
        tch::Device::Cuda(index) => check_status(unsafe { td_cuda_set_device(device_index(index)?) }),
        _ => Ok(()),
    }
}

/// Frees libtorch's cache of device memory; does nothing on the CPU, or if CUDA was never loaded.
///
/// # Errors
/// Errors of CUDA, as `Internal`.
pub fn empty_cache(device: tch::Device) -> Result<()> {
    match device {
        // SAFETY: passes no arguments; libtorch's CUDA library is in the process.
        tch::Device::Cuda(_) if is_linked() => check_status(unsafe { td_cuda_empty_cache() }),
        _ => Ok(()),
    }
}

/// The memory of a device, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct DeviceMemory {
    /// Free for this process, without what libtorch caches.
    pub free: u64,
    /// All of it.
    pub total: u64,
    /// What libtorch has taken, for tensors and its cache.
    pub reserved: u64,
}

/// Returns the memory of a device from [`device`].
///
/// # Errors
/// Errors of CUDA, as `Internal`.
pub fn device_memory(index: usize) -> Result<DeviceMemory> {
    let (mut free, mut total, mut reserved) = (0usize, 0usize, 0usize);
    // SAFETY: a number and places for three; libtorch's CUDA library is in the process, since there is a device.
    check_status(unsafe { td_cuda_memory(device_index(index)?, &mut free, &mut total, &mut reserved) })?;
    Ok(DeviceMemory {
        free: free as u64,
        total: total as u64,
        reserved: reserved as u64,
    })
}

/// Returns how often libtorch's allocator of a device from [`device`] was out of memory, also where libtorch went on.
///
/// # Errors
/// Errors of CUDA, as `Internal`.
pub fn out_of_memory_count(index: usize) -> Result<i64> {
    let mut count = 0;
    // SAFETY: as in `device_memory`.
    check_status(unsafe { td_cuda_out_of_memory_count(device_index(index)?, &mut count) })?;
    Ok(count)
}

/// The lost devices, a bit each.
static LOST: AtomicU64 = AtomicU64::new(0);

fn bit(index: c_int) -> u64 {
    // A machine has at most 16 GPUs; a device of a higher number shares the last bit.
    1 << u32::try_from(index).unwrap_or(63).min(63)
}

/// Marks a device as lost and returns the error to answer with.
pub(super) fn lost(index: c_int, error: &Error) -> Error {
    LOST.fetch_or(bit(index), Ordering::SeqCst);
    Error::device_lost(format!("GPU {index} failed: {error}"))
}

/// Returns whether a device failed in a way that this process cannot recover from.
pub fn is_lost(index: c_int) -> bool {
    LOST.load(Ordering::SeqCst) & bit(index) != 0
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
    use super::*;
    use diffusion_core::ErrorKind;

    #[test]
    fn device_without_the_library_names_the_variable() {
        let outcome = device(0);
        if is_linked() {
            return; // Nothing is missing.
        }
        let error = outcome.expect_err("no CUDA here");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(LIBRARY_PATH_VARIABLE), "{error}");
    }

    #[test]
    fn cpu_needs_no_library() {
        make_current(tch::Device::Cpu).unwrap();
        empty_cache(tch::Device::Cpu).unwrap();
    }

    #[test]
    fn no_device_reason_names_the_versions() {
        if !is_linked() {
            let reason = no_device_reason();
            assert!(reason.contains("libtorch needs CUDA 13."), "{reason}");
        }
    }
}
