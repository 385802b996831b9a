//! Asynchronous copies from pinned memory to a device.
//!
//! A copy from ordinary memory goes through a buffer of the driver, and its thread waits. A copy from pinned memory on
//! a separate stream runs while the next tensor is read and hashed, and does not wait for models that compute on the
//! default stream of the device.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use super::generator::{check_status, scalar_type};
use diffusion_core::{Error, Result};

unsafe extern "C" {
    fn td_pinned_empty(sizes: *const i64, rank: usize, dtype: c_int, out: *mut *mut c_void) -> *mut c_char;
    fn td_pinned_empty_cache() -> *mut c_char;
    fn td_copy_stream(index: c_int, stream: *mut i64) -> *mut c_char;
    fn td_upload(host: *const c_void, index: c_int, stream: i64, out: *mut *mut c_void) -> *mut c_char;
    fn td_stream_synchronize(index: c_int, stream: i64) -> *mut c_char;
}

/// Bytes in flight above which a thread waits, since pinned memory is not available to other processes.
const MAX_IN_FLIGHT: u64 = 256 << 20;

/// Copies the tensors of a load to its device: the CPU, or a CUDA device. Threads may share it.
pub struct PinnedUploader(Option<CopyStream>);

/// A separate stream on a CUDA device.
struct CopyStream {
    index: c_int,
    /// The number of the stream in libtorch.
    id: i64,
    /// Bytes that were copied since the last wait.
    in_flight: AtomicU64,
}

impl PinnedUploader {
    /// Makes an uploader for a device.
    ///
    /// # Errors
    /// Errors of CUDA, as `Internal`; another kind of device.
    pub fn new(device: Device) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Self(None)),
            Device::Cuda(index) => {
                let index = c_int::try_from(index).map_err(|_| Error::internal("a CUDA device index out of range"))?;
                let stream = CopyStream {
                    index,
                    id: stream_of(index)?,
                    in_flight: AtomicU64::new(0),
                };
                Ok(Self(Some(stream)))
            }
            other => Err(Error::internal(format!("weights for {other:?}"))),
        }
    }

    /// Makes an unwritten, contiguous tensor on the host for [`PinnedUploader::copy_to_device`]: pinned for a CUDA
    /// device, if the system allows it.
    pub fn buffer(&self, shape: &[i64], kind: Kind) -> Result<Tensor> {
        if let (Some(_), Some(dtype)) = (&self.0, scalar_type(kind)) {
            let mut out = ptr::null_mut();
            // SAFETY: `shape` is read for its length, `out` has room for one pointer.
            let pinned = check_status(unsafe { td_pinned_empty(shape.as_ptr(), shape.len(), dtype, &mut out) });
            if pinned.is_ok() && !out.is_null() {
                // SAFETY: on success `out` is a new `at::Tensor*` that nobody else owns, which is what a `C_tensor` is.
                return Ok(unsafe { Tensor::from_ptr(out.cast()) });
            }
        }
        Ok(Tensor::f_empty(shape, (kind, Device::Cpu))?)
    }

    /// Copies a tensor to the device. On a GPU its values are valid after [`PinnedUploader::finish`]; the host's memory
    /// lives until then.
    ///
    /// # Errors
    /// Out of memory; errors of CUDA, as `Internal`.
    pub fn copy_to_device(&self, host: Tensor) -> Result<Tensor> {
        let Some(stream) = &self.0 else {
            return Ok(host);
        };
        let mut out = ptr::null_mut();
        // SAFETY: `host` is a live `at::Tensor`, which libtorch also counts while it copies; `out` is a place
        // for one pointer.
        check_status(unsafe { td_upload(host.as_ptr().cast(), stream.index, stream.id, &mut out) })?;
        if out.is_null() {
            return Err(Error::internal("libtorch returned no tensor"));
        }
        // SAFETY: as in `staging`.
        let tensor = unsafe { Tensor::from_ptr(out.cast()) };
        let bytes = (host.numel() * host.kind().elt_size_in_bytes()) as u64;
        drop(host);
        if stream.in_flight.fetch_add(bytes, Ordering::Relaxed) + bytes > MAX_IN_FLIGHT {
            stream.in_flight.store(0, Ordering::Relaxed);
            stream.wait()?;
        }
        Ok(tensor)
    }

    /// Waits for all copies.
    ///
    /// # Errors
    /// Errors of CUDA, as `Internal`: the copies are then invalid.
    pub fn finish(&self) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), CopyStream::wait)
    }
}

/// Frees the pinned memory of a load that failed.
impl Drop for PinnedUploader {
    fn drop(&mut self) {
        if let Some(stream) = &self.0 {
            // A load that succeeds has called `finish` and got its error.
            let _ = stream.wait();
        }
    }
}

impl CopyStream {
    /// Waits for all copies on the stream and frees unused pinned memory.
    fn wait(&self) -> Result<()> {
        // SAFETY: passes numbers only.
        check_status(unsafe { td_stream_synchronize(self.index, self.id) })?;
        // SAFETY: passes no arguments.
        check_status(unsafe { td_pinned_empty_cache() })
    }
}

/// Returns the stream on which this process copies to the device. There is only one, because libtorch's allocator
/// caches memory for each stream: a load reuses the memory that an earlier load freed.
fn stream_of(index: c_int) -> Result<i64> {
    static STREAMS: Mutex<BTreeMap<c_int, i64>> = Mutex::new(BTreeMap::new());
    let mut streams = STREAMS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(&id) = streams.get(&index) {
        return Ok(id);
    }
    let mut id = 0;
    // SAFETY: `id` has room for the number; a CUDA device exists, so its library is in the process.
    check_status(unsafe { td_copy_stream(index, &mut id) })?;
    streams.insert(index, id);
    Ok(id)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn copy_to_device_on_the_cpu_keeps_the_tensor() {
        let upload = PinnedUploader::new(Device::Cpu).unwrap();
        let staged = upload.buffer(&[2, 3], Kind::Half).unwrap();
        assert_eq!((staged.size(), staged.kind()), (vec![2, 3], Kind::Half));
        let address = staged.data_ptr();
        assert_eq!(upload.copy_to_device(staged).unwrap().data_ptr(), address);
        upload.finish().unwrap();
    }

    #[test]
    fn uploader_without_cuda_returns_errors() {
        if crate::torch::cuda::is_linked() {
            return; // Nothing is missing.
        }
        assert!(PinnedUploader::new(Device::Cuda(0)).is_err());
        let upload = PinnedUploader(Some(CopyStream {
            index: 0,
            id: 0,
            in_flight: AtomicU64::new(0),
        }));
        let staged = upload.buffer(&[4], Kind::Float).unwrap();
        assert_eq!(staged.device(), Device::Cpu);
        assert!(upload.copy_to_device(staged).is_err());
        assert!(upload.finish().is_err());
    }
}
