//! Copies to a device that do not wait for each other.
//!
//! A copy from ordinary memory goes through the driver's own staging buffer, and its thread waits for it. From pinned memory, on a
//! stream apart, the next tensor is read and hashed while the last one crosses the bus, and the copies do not queue behind what other
//! models compute on the device's default stream.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use super::generator::{scalar_type, take};
use diffusion_core::{Error, Result};

unsafe extern "C" {
    fn td_pinned_empty(sizes: *const i64, rank: usize, dtype: c_int, out: *mut *mut c_void) -> *mut c_char;
    fn td_pinned_empty_cache() -> *mut c_char;
    fn td_copy_stream(index: c_int, stream: *mut i64) -> *mut c_char;
    fn td_upload(host: *const c_void, index: c_int, stream: i64, out: *mut *mut c_void) -> *mut c_char;
    fn td_stream_synchronize(index: c_int, stream: i64) -> *mut c_char;
}

/// Bytes under way at which a thread waits for the bus: what is staged is pinned, and taken from everybody on the host.
const MOST_UNDER_WAY: u64 = 256 << 20;

/// Where a load puts its tensors: the CPU, or a CUDA device. Threads may share it.
pub struct Upload(Option<CopyStream>);

/// A stream apart on a CUDA device.
struct CopyStream {
    index: c_int,
    /// libtorch's number for it.
    id: i64,
    /// Bytes that were sent since somebody waited last.
    under_way: AtomicU64,
}

impl Upload {
    /// To a device.
    ///
    /// # Errors
    /// CUDA's own, as `Internal`; another kind of device.
    pub fn to(device: Device) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Self(None)),
            Device::Cuda(index) => {
                let index = c_int::try_from(index).map_err(|_| Error::internal("a CUDA device index out of range"))?;
                let stream = CopyStream {
                    index,
                    id: stream_of(index)?,
                    under_way: AtomicU64::new(0),
                };
                Ok(Self(Some(stream)))
            }
            other => Err(Error::internal(format!("weights for {other:?}"))),
        }
    }

    /// An unwritten, contiguous tensor on the host, from which [`Upload::send`] copies: pinned where that helps, as long as the
    /// system lets memory be pinned.
    ///
    /// # Errors
    /// Out of memory.
    pub fn staging(&self, shape: &[i64], kind: Kind) -> Result<Tensor> {
        if let (Some(_), Some(dtype)) = (&self.0, scalar_type(kind)) {
            let mut out = ptr::null_mut();
            // SAFETY: `shape` is read for its length, `out` is a place for one pointer.
            let pinned = take(unsafe { td_pinned_empty(shape.as_ptr(), shape.len(), dtype, &mut out) });
            if pinned.is_ok() && !out.is_null() {
                // SAFETY: on success `out` is a new `at::Tensor*` that nobody else owns, which is what a `C_tensor` is.
                return Ok(unsafe { Tensor::from_ptr(out.cast()) });
            }
        }
        Ok(Tensor::f_empty(shape, (kind, Device::Cpu))?)
    }

    /// The tensor on the device. On a GPU its values are there once [`Upload::finish`] has returned; the host's memory is kept
    /// until they are.
    ///
    /// # Errors
    /// Out of memory; CUDA's own, as `Internal`.
    pub fn send(&self, host: Tensor) -> Result<Tensor> {
        let Some(stream) = &self.0 else {
            return Ok(host);
        };
        let mut out = ptr::null_mut();
        // SAFETY: `host` is a live `at::Tensor`, of which libtorch takes a count of its own as long as it copies; `out` is a place
        // for one pointer.
        take(unsafe { td_upload(host.as_ptr().cast(), stream.index, stream.id, &mut out) })?;
        if out.is_null() {
            return Err(Error::internal("libtorch gave no tensor"));
        }
        // SAFETY: as in `staging`.
        let tensor = unsafe { Tensor::from_ptr(out.cast()) };
        let bytes = (host.numel() * host.kind().elt_size_in_bytes()) as u64;
        drop(host);
        if stream.under_way.fetch_add(bytes, Ordering::Relaxed) + bytes > MOST_UNDER_WAY {
            stream.under_way.store(0, Ordering::Relaxed);
            stream.wait()?;
        }
        Ok(tensor)
    }

    /// Waits until all that was sent is there.
    ///
    /// # Errors
    /// CUDA's own, as `Internal`: then what was sent is not there.
    pub fn finish(&self) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), CopyStream::wait)
    }
}

/// Also what a load that failed has staged goes back.
impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(stream) = &self.0 {
            // Whoever needs to know has called `finish`.
            let _ = stream.wait();
        }
    }
}

impl CopyStream {
    /// Waits for all that was put on the stream, and gives the pinned memory that nothing uses back.
    fn wait(&self) -> Result<()> {
        // SAFETY: takes numbers.
        take(unsafe { td_stream_synchronize(self.index, self.id) })?;
        // SAFETY: takes nothing.
        take(unsafe { td_pinned_empty_cache() })
    }
}

/// The stream on which this process copies to the device: one, since libtorch's allocator keeps the memory of each stream apart, so that
/// what is freed after one load serves the next.
fn stream_of(index: c_int) -> Result<i64> {
    static STREAMS: Mutex<BTreeMap<c_int, i64>> = Mutex::new(BTreeMap::new());
    let mut streams = STREAMS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(&id) = streams.get(&index) {
        return Ok(id);
    }
    let mut id = 0;
    // SAFETY: a number and a place for one; there is a CUDA device, so that its library is in the process.
    take(unsafe { td_copy_stream(index, &mut id) })?;
    streams.insert(index, id);
    Ok(id)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn on_the_cpu_a_tensor_stays_where_it_was_made() {
        let upload = Upload::to(Device::Cpu).unwrap();
        let staged = upload.staging(&[2, 3], Kind::Half).unwrap();
        assert_eq!((staged.size(), staged.kind()), (vec![2, 3], Kind::Half));
        let address = staged.data_ptr();
        assert_eq!(upload.send(staged).unwrap().data_ptr(), address);
        upload.finish().unwrap();
    }

    #[test]
    fn without_cuda_its_calls_are_errors_and_ordinary_memory_is_staged() {
        if crate::torch::cuda::is_linked() {
            return; // Nothing is missing.
        }
        assert!(Upload::to(Device::Cuda(0)).is_err());
        let upload = Upload(Some(CopyStream {
            index: 0,
            id: 0,
            under_way: AtomicU64::new(0),
        }));
        let staged = upload.staging(&[4], Kind::Float).unwrap();
        assert_eq!(staged.device(), Device::Cpu);
        assert!(upload.send(staged).is_err());
        assert!(upload.finish().is_err());
    }
}
