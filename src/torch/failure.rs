//! What an error of libtorch on a GPU means: no memory, a lost device, or a fault of one call.

use tch::Device;

use super::{Stream, cuda};
use diffusion_core::libtorch::may_mean_out_of_memory;
use diffusion_core::{Error, Result};

/// With less free memory than this, a library that cannot work is out of memory.
const LITTLE_MEMORY: u64 = 256 << 20;

/// Calls `call`, which works on `stream`, the current stream of `device`, and finds out what an `Internal` error of it
/// means:
///
/// - `OutOfMemory` for an error that libraries also give without memory, if the allocator was out of memory during the
///   call or little memory is free
/// - `DeviceLost` if the device does not work any more
/// - otherwise the error as it is
///
/// # Errors
/// Those of `call`.
pub fn classify_errors<T>(device: Device, stream: &Stream, call: impl FnOnce() -> Result<T>) -> Result<T> {
    let Device::Cuda(index) = device else {
        return call();
    };
    let failures = || cuda::out_of_memory_count(index).unwrap_or(0);
    let before = failures();
    call().map_err(|error| {
        let Error::Internal(message) = &error else {
            return error;
        };
        if may_mean_out_of_memory(message) {
            let free = cuda::device_memory(index).map_or(u64::MAX, |memory| memory.free);
            if failures() > before || free < LITTLE_MEMORY {
                return Error::out_of_memory(message.clone());
            }
        }
        // CUDA repeats an error that it cannot recover from at every call.
        stream.synchronize().err().unwrap_or(error)
    })
}
