//! Random generators, seeded per request.
//!
//! tch has only the process-wide generator of libtorch, which all requests would share. Here each request has a
//! generator with the numbers of `torch.Generator("cpu").manual_seed(seed)`, as in diffusers.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use tch::{Kind, Tensor};

use super::Stream;
use super::error::from_message;
use diffusion_core::{Error, Result};

#[repr(C)]
struct Opaque {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn td_message_free(message: *mut c_char);
    fn td_generator_new(seed: u64, out: *mut *mut Opaque) -> *mut c_char;
    fn td_generator_free(generator: *mut Opaque);
    fn td_randn(
        generator: *mut Opaque,
        sizes: *const i64,
        rank: usize,
        dtype: c_int,
        out: *mut *mut c_void,
    ) -> *mut c_char;
}

/// Converts a message of the shim to a `Result` and frees the message; null is success.
pub(super) fn check_status(message: *mut c_char) -> Result<()> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a message of the shim is a NUL-terminated string from malloc that the caller frees, and nothing else
    // refers to it.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        td_message_free(message);
        text
    };
    Err(from_message(&text))
}

/// Returns the number of a float dtype in `c10/core/ScalarType.h`, which tch does not export.
pub(super) fn scalar_type(kind: Kind) -> Option<c_int> {
    match kind {
        Kind::Half => Some(5),
        Kind::Float => Some(6),
        Kind::Double => Some(7),
        Kind::BFloat16 => Some(15),
        _ => None,
    }
}

/// libtorch's CPU generator (Mersenne Twister 19937), owned by one request.
pub struct Generator {
    inner: NonNull<Opaque>,
    /// Copies the noise to the device.
    stream: Arc<Stream>,
}

// SAFETY: the generator behind the pointer is reached through this value alone, and libtorch ties
// none of its state to the thread that made it.
unsafe impl Send for Generator {}

impl Generator {
    /// Makes a generator in the state of `torch.Generator("cpu").manual_seed(seed)`, for noise on the CPU.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(seed: u64) -> Result<Self> {
        Self::on(Arc::new(Stream::cpu()), seed)
    }

    /// Makes a generator with the same numbers, for noise on the device of `stream`. The noise is drawn on the CPU.
    ///
    /// # Errors
    /// Out of memory.
    pub fn on(stream: Arc<Stream>, seed: u64) -> Result<Self> {
        let mut inner = ptr::null_mut();
        // SAFETY: `inner` has room for one pointer, which the call fills on success.
        check_status(unsafe { td_generator_new(seed, &mut inner) })?;
        NonNull::new(inner)
            .map(|inner| Self { inner, stream })
            .ok_or_else(|| Error::internal("libtorch returned no generator"))
    }

    /// Draws standard normal noise on the CPU.
    ///
    /// The dtype changes the numbers: half-precision noise is not rounded float32 noise.
    ///
    /// # Errors
    /// Out of memory, or a shape that libtorch refuses.
    pub fn randn(&mut self, shape: &[i64], kind: Kind) -> Result<Tensor> {
        let dtype =
            scalar_type(kind).ok_or_else(|| Error::internal(format!("noise of dtype {kind:?} is not supported")))?;
        let mut out = ptr::null_mut();
        // SAFETY: the generator is alive and borrowed exclusively; `shape` is read for
        // `shape.len()` values; `out` has room for one pointer.
        check_status(unsafe { td_randn(self.inner.as_ptr(), shape.as_ptr(), shape.len(), dtype, &mut out) })?;
        if out.is_null() {
            return Err(Error::internal("libtorch returned no noise"));
        }
        // SAFETY: on success `out` is a new `at::Tensor*` that nobody else owns, which is what a
        // `C_tensor` is.
        Ok(unsafe { Tensor::from_ptr(out.cast()) })
    }

    /// Draws standard normal noise as [`Generator::randn`] does, and copies it to the device. Does not wait for the device.
    ///
    /// # Errors
    /// Those of [`Generator::randn`] and [`Stream::to_device`].
    pub fn randn_on_device(&mut self, shape: &[i64], kind: Kind) -> Result<Tensor> {
        let noise = self.randn(shape, kind)?;
        self.stream.to_device(&noise)
    }

    /// Draws noise as [`Generator::randn_on_device`] does, in the shape of `tensor`.
    ///
    /// # Errors
    /// Those of [`Generator::randn_on_device`].
    pub fn randn_like(&mut self, tensor: &Tensor, kind: Kind) -> Result<Tensor> {
        self.randn_on_device(&tensor.size(), kind)
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        // SAFETY: the pointer came from td_generator_new and is freed here alone.
        unsafe { td_generator_free(self.inner.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn randn_equals_the_global_generator_of_the_same_seed() {
        let mut own = Generator::new(7).unwrap();
        let ours = own.randn(&[1, 4, 8, 8], Kind::Float).unwrap();
        let again = own.randn(&[3], Kind::Float).unwrap();
        tch::manual_seed(7);
        let theirs = Tensor::randn([1, 4, 8, 8], (Kind::Float, tch::Device::Cpu));
        let theirs_again = Tensor::randn([3], (Kind::Float, tch::Device::Cpu));
        assert_eq!(ours, theirs);
        assert_eq!(again, theirs_again);
    }

    #[test]
    fn generators_are_independent() {
        let mut a = Generator::new(1).unwrap();
        let mut b = Generator::new(1).unwrap();
        let mut other = Generator::new(2).unwrap();
        let first = a.randn(&[16], Kind::Float).unwrap();
        let _ = other.randn(&[16], Kind::Float).unwrap();
        assert_eq!(first, b.randn(&[16], Kind::Float).unwrap());
        assert_ne!(first, Generator::new(2).unwrap().randn(&[16], Kind::Float).unwrap());
    }

    #[test]
    fn randn_of_an_invalid_shape_is_an_error() {
        assert!(Generator::new(0).unwrap().randn(&[-1], Kind::Float).is_err());
    }
}
