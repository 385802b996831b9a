//! Copies of weights to a device, through a ring of pinned buffers.
//!
//! A copy from ordinary memory goes through a buffer of the driver, and its thread waits. A copy from pinned memory on
//! a separate stream runs while the next piece is read, converted and hashed, and does not wait for models that compute
//! on their own streams. Pinning memory stops all work of the GPU, so the process pins the ring once and keeps it.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::{Condvar, Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use super::generator::{check_status, scalar_type};
use super::pinned::pinned_bytes;
use super::stream::{Event, RawStream};
use super::{cuda, memory};
use diffusion_core::{Error, Result};

unsafe extern "C" {
    fn td_cuda_empty(
        sizes: *const i64,
        rank: usize,
        dtype: c_int,
        index: c_int,
        stream: i64,
        out: *mut *mut c_void,
    ) -> *mut c_char;
}

/// Bytes of a buffer of the ring.
const BUFFER_BYTES: usize = 32 << 20;
/// Buffers of the ring: two are filled while two are copied.
const BUFFERS: usize = 4;

/// Makes the tensors of a load on its device: the CPU, or a CUDA device. Threads may share it.
pub struct Uploader(Option<RawStream>);

impl Uploader {
    /// Makes an uploader for a device.
    ///
    /// # Errors
    /// Errors of CUDA, as `Internal`; another kind of device.
    pub fn new(device: Device) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Self(None)),
            Device::Cuda(index) => Ok(Self(Some(stream_of(cuda::device_index(index)?)?))),
            other => Err(Error::internal(format!("weights for {other:?}"))),
        }
    }

    /// Makes a contiguous tensor of a float dtype on the device. `fill` writes all of its bytes, piece after piece; every piece
    /// holds whole elements. On a GPU the values are valid after [`Uploader::finish`].
    ///
    /// # Errors
    /// Those of `fill`; out of memory; errors of CUDA, as `Internal`.
    pub fn tensor(
        &self,
        shape: &[i64],
        kind: Kind,
        mut fill: impl FnMut(&mut Unwritten<'_>) -> Result<()>,
    ) -> Result<Tensor> {
        let Some(stream) = self.0 else {
            let tensor = Tensor::f_empty(shape, (kind, Device::Cpu))?;
            let bytes = tensor.numel() * kind.elt_size_in_bytes();
            if bytes > 0 {
                memory::prefer_huge_pages(tensor.data_ptr().cast(), bytes);
                // SAFETY: the tensor is new, contiguous and of this length, and nothing else refers to it. Its bytes may be
                // unwritten, as the type says.
                let memory = unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), bytes) };
                Unwritten::fill(memory, &mut fill)?;
            }
            return Ok(tensor);
        };
        let tensor = empty(shape, kind, stream)?;
        let flat = tensor.f_view([-1])?;
        let size = kind.elt_size_in_bytes();
        let (mut start, count) = (0, tensor.numel());
        while start < count {
            let elements = (count - start).min(BUFFER_BYTES / size);
            let mut buffer = Buffer::take()?;
            Unwritten::fill(buffer.bytes(elements * size)?, &mut fill)?;
            let target = flat.f_narrow(0, start as i64, elements as i64)?;
            buffer.copy_to(&target, stream)?;
            start += elements;
        }
        Ok(tensor)
    }

    /// Waits for all copies.
    ///
    /// # Errors
    /// `DeviceLost` if the GPU failed.
    pub fn finish(&self) -> Result<()> {
        self.0.map_or(Ok(()), RawStream::synchronize)
    }
}

/// New memory, which is written from its beginning to its end.
pub struct Unwritten<'a> {
    rest: &'a mut [MaybeUninit<u8>],
}

impl<'a> Unwritten<'a> {
    fn fill(memory: &'a mut [MaybeUninit<u8>], fill: &mut impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        let mut unwritten = Self { rest: memory };
        fill(&mut unwritten)?;
        match unwritten.rest.len() {
            0 => Ok(()),
            left => Err(Error::internal(format!("{left} bytes of a tensor were not written"))),
        }
    }

    /// Returns how many bytes are left to be written.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// `Internal` if there are more of them than [`Unwritten::remaining`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let rest = std::mem::take(&mut self.rest);
        let (target, rest) = rest
            .split_at_mut_checked(bytes.len())
            .ok_or_else(|| Error::internal("more bytes than the tensor has"))?;
        // SAFETY: both are of this length, and the target is borrowed alone.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), target.as_mut_ptr().cast(), bytes.len()) };
        self.rest = rest;
        Ok(())
    }
}

/// Makes an unwritten tensor in memory of the copy stream. The allocator gives that memory to copies of this stream
/// only, so no copy overwrites what an earlier copy still writes.
fn empty(shape: &[i64], kind: Kind, stream: RawStream) -> Result<Tensor> {
    let dtype = scalar_type(kind).ok_or_else(|| Error::internal(format!("no weights of dtype {kind:?}")))?;
    let mut out = ptr::null_mut();
    // SAFETY: `shape` is read for its length, `out` has room for one pointer.
    check_status(unsafe { td_cuda_empty(shape.as_ptr(), shape.len(), dtype, stream.index, stream.id, &mut out) })?;
    if out.is_null() {
        return Err(Error::internal("libtorch returned no tensor"));
    }
    // SAFETY: on success `out` is a new `at::Tensor*` that nobody else owns, which is what a `C_tensor` is.
    Ok(unsafe { Tensor::from_ptr(out.cast()) })
}

/// A buffer of the ring, which goes back when the value is dropped.
struct Buffer(Option<RingBuffer>);

struct RingBuffer {
    memory: Tensor,
    /// The end of the last copy from the buffer.
    copied: Option<Event>,
}

struct Ring {
    idle: Vec<RingBuffer>,
    /// The number of buffers that exist.
    made: usize,
}

static RING: Mutex<Ring> = Mutex::new(Ring {
    idle: Vec::new(),
    made: 0,
});
static RETURNED: Condvar = Condvar::new();

impl Buffer {
    /// Takes a buffer; waits until one is idle and its last copy is done.
    fn take() -> Result<Self> {
        let mut ring = RING.lock().unwrap_or_else(PoisonError::into_inner);
        while ring.idle.is_empty() && ring.made == BUFFERS {
            ring = RETURNED.wait(ring).unwrap_or_else(PoisonError::into_inner);
        }
        let buffer = match ring.idle.pop() {
            Some(buffer) => buffer,
            None => {
                // Without pinned memory the copy works too, and waits.
                let memory = pinned_bytes(BUFFER_BYTES)
                    .or_else(|_| Tensor::f_empty([BUFFER_BYTES as i64], (Kind::Uint8, Device::Cpu)))?;
                ring.made += 1;
                RingBuffer { memory, copied: None }
            }
        };
        drop(ring);
        let buffer = Self(Some(buffer));
        if let Some(copied) = buffer.0.as_ref().and_then(|buffer| buffer.copied.as_ref()) {
            copied.synchronize()?;
        }
        Ok(buffer)
    }

    fn ring_buffer(&mut self) -> Result<&mut RingBuffer> {
        self.0
            .as_mut()
            .ok_or_else(|| Error::internal("a buffer that went back"))
    }

    /// Returns the first bytes of the buffer, to be written.
    fn bytes(&mut self, length: usize) -> Result<&mut [MaybeUninit<u8>]> {
        let memory = &self.ring_buffer()?.memory;
        debug_assert!(length <= memory.numel());
        // SAFETY: the tensor is contiguous and at least this long. This value is its only owner, and the last copy from it
        // is done. Its bytes may be unwritten, as the type says.
        Ok(unsafe { std::slice::from_raw_parts_mut(memory.data_ptr().cast(), length) })
    }

    /// Queues a copy of the first bytes to `target`, a contiguous vector on the device.
    fn copy_to(&mut self, target: &Tensor, stream: RawStream) -> Result<()> {
        let buffer = self.ring_buffer()?;
        let bytes = target.numel() * target.kind().elt_size_in_bytes();
        let source = buffer
            .memory
            .f_narrow(0, 0, bytes as i64)?
            .f_view_dtype(target.kind())?;
        stream.copy(target, &source)?;
        let mut copied = Event::new(stream);
        copied.record()?;
        buffer.copied = Some(copied);
        Ok(())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(buffer) = self.0.take() {
            RING.lock().unwrap_or_else(PoisonError::into_inner).idle.push(buffer);
            RETURNED.notify_one();
        }
    }
}

/// Returns the stream on which this process copies weights to the device. There is only one, because libtorch's
/// allocator caches memory for each stream: a load uses the memory that an earlier load freed.
fn stream_of(index: c_int) -> Result<RawStream> {
    static STREAMS: Mutex<BTreeMap<c_int, RawStream>> = Mutex::new(BTreeMap::new());
    let mut streams = STREAMS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(&stream) = streams.get(&index) {
        return Ok(stream);
    }
    let stream = RawStream::new(index)?;
    streams.insert(index, stream);
    Ok(stream)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn tensor_on_the_cpu_is_filled_in_one_piece() {
        let upload = Uploader::new(Device::Cpu).unwrap();
        let mut pieces = 0;
        let tensor = upload.tensor(&[2, 3], Kind::Half, |bytes| {
            pieces += 1;
            assert_eq!(bytes.remaining(), 12);
            bytes.write(&[0; 5])?;
            bytes.write(&[0; 7])
        });
        let tensor = tensor.unwrap();
        assert_eq!((tensor.size(), tensor.kind(), pieces), (vec![2, 3], Kind::Half, 1));
        assert_eq!(tensor, tensor.zeros_like());
        upload.finish().unwrap();
        for wrong in [5, 13] {
            let result = upload.tensor(&[2, 3], Kind::Half, |bytes| bytes.write(&vec![0; wrong]));
            assert!(result.is_err(), "{wrong} bytes");
        }
    }

    #[test]
    fn uploader_without_cuda_is_an_error() {
        if !cuda::is_linked() {
            assert!(Uploader::new(Device::Cuda(0)).is_err());
        }
    }
}
