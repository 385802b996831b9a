//! What an error of libtorch on a GPU means: no memory, a lost device, or a fault of one call.

use tch::Device;
#[cfg(feature = "failpoints")]
use tch::{Kind, Tensor};

#[cfg(feature = "failpoints")]
use super::numbers::NumberOperators;
use super::{Stream, cuda};
use diffusion_core::libtorch::may_mean_out_of_memory;
use diffusion_core::{Error, Result};

/// With less free memory than this, a library that cannot work is out of memory.
const LITTLE_MEMORY: u64 = 256 << 20;

/// Loses a GPU for the rest of the process: an index beyond a table stops its kernel, and CUDA recovers from no such stop.
///
/// # Errors
/// Those of CUDA; also on success the error may come only with a later call.
#[cfg(feature = "failpoints")]
pub fn lose_device(device: Device) -> Result<()> {
    let table = Tensor::f_zeros([1, 1], (Kind::Float, device))?;
    let index = Tensor::f_ones([1], (Kind::Int64, device))?.mul_number(1 << 40)?;
    let _row = table.f_index_select(0, &index)?;
    Ok(())
}

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
