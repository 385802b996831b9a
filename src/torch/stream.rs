//! A stream of a GPU, and copies to and from the host that do not wait for the GPU.
//!
//! A copy from or to ordinary memory waits for all work that is queued on its stream. A copy from or to pinned memory
//! does not. A [`Stream`] has its own pinned memory, which it uses again two steps later.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::{Device, Tensor};

use super::cuda;
use super::generator::check_status;
use super::pinned::PinnedMemory;
use diffusion_core::Result;

unsafe extern "C" {
    fn td_stream_new(index: c_int, stream: *mut i64) -> *mut c_char;
    fn td_stream_make_current(index: c_int, stream: i64) -> *mut c_char;
    fn td_stream_synchronize(index: c_int, stream: i64) -> *mut c_char;
    fn td_event_record(event: *mut *mut c_void, index: c_int, stream: i64) -> *mut c_char;
    fn td_event_synchronize(event: *mut c_void) -> *mut c_char;
    fn td_event_free(event: *mut c_void, index: c_int);
    fn td_copy_non_blocking(to: *mut c_void, from: *const c_void, index: c_int, stream: i64) -> *mut c_char;
}

/// The stream of one thread on its device. On the CPU there is no stream, and nothing is copied.
///
/// Dropping it waits for its work, so that memory that is freed later is not in use.
pub struct Stream(Option<CudaStream>);

struct CudaStream {
    raw: RawStream,
    buffers: Mutex<StepBuffers>,
}

/// Pinned memory of the current step and of the step before.
struct StepBuffers {
    current: StepBuffer,
    previous: StepBuffer,
}

/// The pinned memory of a step, and the event at the step's end.
struct StepBuffer {
    memory: PinnedMemory,
    event: Event,
}

impl Stream {
    /// Returns the stream of the CPU, which is none.
    pub fn cpu() -> Self {
        Self(None)
    }

    /// Takes a stream for a device.
    ///
    /// # Errors
    /// Errors of CUDA, as `Internal`; another kind of device.
    pub fn new(device: Device) -> Result<Self> {
        let Device::Cuda(index) = device else {
            return Ok(Self::cpu());
        };
        let raw = RawStream::new(cuda::device_index(index)?)?;
        let buffer = || StepBuffer {
            memory: PinnedMemory::default(),
            event: Event::new(raw),
        };
        let buffers = Mutex::new(StepBuffers {
            current: buffer(),
            previous: buffer(),
        });
        Ok(Self(Some(CudaStream { raw, buffers })))
    }

    /// Makes the device and the stream current on this thread; does nothing for the CPU.
    ///
    /// # Errors
    /// Errors of CUDA, as `Internal`.
    pub fn make_current(&self) -> Result<()> {
        let Some(CudaStream { raw, .. }) = &self.0 else {
            return Ok(());
        };
        cuda::make_current(Device::Cuda(raw.index as usize))?;
        // SAFETY: passes numbers of a device and of a stream that exist.
        check_status(unsafe { td_stream_make_current(raw.index, raw.id) })
    }

    /// Begins a step. Waits until the step before the last one is computed: the GPU then still has a step to compute,
    /// and the host is at most one step ahead of the GPU.
    ///
    /// # Errors
    /// `DeviceLost` if the GPU failed.
    pub fn begin_step(&self) -> Result<()> {
        let Some(stream) = &self.0 else {
            return Ok(());
        };
        let mut buffers = stream.buffers();
        let StepBuffers { current, previous } = &mut *buffers;
        current.event.record()?;
        std::mem::swap(current, previous);
        current.event.synchronize()?;
        current.memory.reuse();
        Ok(())
    }

    /// Copies a tensor of the host to the device, contiguous. Does not wait for the GPU. On the CPU it is the tensor
    /// itself.
    ///
    /// # Errors
    /// Out of memory; errors of CUDA, as `Internal`.
    pub fn to_device(&self, host: &Tensor) -> Result<Tensor> {
        let Some(stream) = &self.0 else {
            return Ok(host.shallow_clone());
        };
        let mut pinned = stream.buffers().current.memory.tensor(&host.size(), host.kind())?;
        pinned.f_copy_(host)?;
        let copy = Tensor::f_empty(host.size(), (host.kind(), Device::Cuda(stream.raw.index as usize)))?;
        stream.copy(&copy, &pinned)?;
        Ok(copy)
    }

    /// Queues a copy of a tensor of the device to the host, contiguous. Its values are valid after
    /// [`Stream::synchronize`], and until the second [`Stream::begin_step`] from now. On the CPU it is the tensor itself.
    ///
    /// # Errors
    /// Out of memory; errors of CUDA, as `Internal`.
    pub fn to_host(&self, tensor: &Tensor) -> Result<Tensor> {
        let Some(stream) = &self.0 else {
            return Ok(tensor.shallow_clone());
        };
        let pinned = stream.buffers().current.memory.tensor(&tensor.size(), tensor.kind())?;
        stream.copy(&pinned, &tensor.f_contiguous()?)?;
        Ok(pinned)
    }

    /// Returns libtorch's stream; `None` for the CPU.
    pub(super) fn raw(&self) -> Option<RawStream> {
        self.0.as_ref().map(|stream| stream.raw)
    }

    /// Waits for all work of the stream.
    ///
    /// # Errors
    /// `DeviceLost` if the GPU failed.
    pub fn synchronize(&self) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |stream| stream.raw.synchronize())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(mut stream) = self.0.take() {
            // A failure is a lost device, which the instance reports at its next call.
            let _ = stream.raw.synchronize();
            if cuda::is_lost(stream.raw.index) {
                // libtorch asks the GPU when pinned memory is freed. The error would end the process.
                let buffers = stream.buffers.get_mut().unwrap_or_else(PoisonError::into_inner);
                buffers.current.memory.leak();
                buffers.previous.memory.leak();
            }
        }
    }
}

impl CudaStream {
    fn buffers(&self) -> MutexGuard<'_, StepBuffers> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copy(&self, to: &Tensor, from: &Tensor) -> Result<()> {
        self.raw.copy(to, from)
    }
}

/// A stream of libtorch's pool. libtorch owns the streams and never frees them.
#[derive(Clone, Copy)]
pub(super) struct RawStream {
    pub index: c_int,
    /// The number of the stream in libtorch.
    pub id: i64,
}

impl RawStream {
    /// Takes a stream of the device.
    pub fn new(index: c_int) -> Result<Self> {
        let mut id = 0;
        // SAFETY: `id` has room for the number; a CUDA device exists, so its library is in the process.
        check_status(unsafe { td_stream_new(index, &mut id) })?;
        Ok(Self { index, id })
    }

    /// Waits for all work on the stream. A failure means that the device is lost: CUDA reports the errors of earlier work
    /// here, and none of them can be recovered from in this process.
    pub fn synchronize(self) -> Result<()> {
        // SAFETY: passes numbers only.
        check_status(unsafe { td_stream_synchronize(self.index, self.id) })
            .map_err(|error| cuda::lost(self.index, &error))
    }

    /// Queues a copy between the device and pinned memory.
    pub fn copy(self, to: &Tensor, from: &Tensor) -> Result<()> {
        // SAFETY: both are live `at::Tensor`s. The pinned one is not written or freed before the copy is done: its owner
        // waits for an event that follows the copy first.
        check_status(unsafe {
            td_copy_non_blocking(to.as_ptr().cast_mut().cast(), from.as_ptr().cast(), self.index, self.id)
        })
    }
}

/// A point in the work of a stream.
pub(super) struct Event {
    stream: RawStream,
    /// Null before the first record.
    raw: *mut c_void,
}

// SAFETY: CUDA's events may be used from any thread, and this value is the only owner of its event.
unsafe impl Send for Event {}

impl Event {
    pub fn new(stream: RawStream) -> Self {
        Self {
            stream,
            raw: ptr::null_mut(),
        }
    }

    /// Returns the number of the device.
    pub fn device(&self) -> c_int {
        self.stream.index
    }

    /// Moves the event to the end of the work that is queued now.
    pub fn record(&mut self) -> Result<()> {
        // SAFETY: `raw` is null or this value's event.
        check_status(unsafe { td_event_record(&mut self.raw, self.stream.index, self.stream.id) })
            .map_err(|error| cuda::lost(self.stream.index, &error))
    }

    /// Waits for the work before the event; returns at once if it was never recorded.
    pub fn synchronize(&self) -> Result<()> {
        if self.raw.is_null() {
            return Ok(());
        }
        // SAFETY: this value's event.
        check_status(unsafe { td_event_synchronize(self.raw) }).map_err(|error| cuda::lost(self.stream.index, &error))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: null or this value's event, freed once. libtorch only warns of errors here.
        unsafe { td_event_free(self.raw, self.stream.index) }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use tch::Kind;

    #[test]
    fn stream_of_the_cpu_copies_nothing() {
        let stream = Stream::new(Device::Cpu).unwrap();
        stream.make_current().unwrap();
        stream.begin_step().unwrap();
        let tensor = Tensor::zeros([2], (Kind::Float, Device::Cpu));
        assert_eq!(stream.to_device(&tensor).unwrap().data_ptr(), tensor.data_ptr());
        assert_eq!(stream.to_host(&tensor).unwrap().data_ptr(), tensor.data_ptr());
        stream.synchronize().unwrap();
    }

    #[test]
    fn stream_without_cuda_is_an_error() {
        if !cuda::is_linked() {
            assert!(Stream::new(Device::Cuda(0)).is_err());
        }
    }
}
