//! Tensors over memory that somebody else keeps.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::generator::{scalar_type, take};
use diffusion_core::{Error, Result};

unsafe extern "C" {
    fn td_borrow(
        data: *mut c_void,
        sizes: *const i64,
        rank: usize,
        dtype: c_int,
        device: c_int,
        owner: *mut c_void,
        release: extern "C" fn(*mut c_void),
        out: *mut *mut c_void,
    ) -> *mut c_char;
}

/// Memory that tensors may lie in.
///
/// # Safety
/// `data` is valid for reads of `bytes` bytes on `device` from any thread, and neither moves nor changes, for as long as the value
/// lives.
pub unsafe trait Memory: Send + Sync + 'static {
    /// Where the memory begins.
    fn data(&self) -> *const u8;
    /// Its length.
    fn bytes(&self) -> usize;
    /// The device that it is on.
    fn device(&self) -> Device;
}

extern "C" fn release<M: Memory>(owner: *mut c_void) {
    // SAFETY: the pointer comes from `Arc::into_raw` in `borrow`, and the shim calls this once.
    drop(unsafe { Arc::from_raw(owner.cast_const().cast::<M>()) });
}

/// A contiguous tensor of `shape` and `kind` over `owner`'s memory, which lives until the last tensor over it is gone.
///
/// # Safety
/// Nothing may write to the tensor or a view of it: others read the same memory, which may be a file mapped for reading.
///
/// # Errors
/// A shape that does not fill the memory exactly; a dtype that weights do not have.
pub unsafe fn borrow<M: Memory>(owner: Arc<M>, shape: &[i64], kind: Kind) -> Result<Tensor> {
    let dtype = scalar_type(kind).ok_or_else(|| Error::internal(format!("no weights of dtype {kind:?}")))?;
    let wanted = shape.iter().try_fold(kind.elt_size_in_bytes(), |bytes, &side| {
        bytes.checked_mul(usize::try_from(side).ok()?)
    });
    if wanted != Some(owner.bytes()) {
        return Err(Error::internal("a tensor that does not fill its memory"));
    }
    let device = match owner.device() {
        Device::Cuda(index) => {
            c_int::try_from(index).map_err(|_| Error::internal("a CUDA device index out of range"))?
        }
        _ => -1,
    };
    let data = owner.data().cast_mut().cast::<c_void>();
    let mut out = ptr::null_mut();
    // SAFETY: the memory is as long as shape and dtype say and lives as long as the owner, whose count the shim takes over on
    // every path; `shape` is read for its length; `out` is a place for one pointer.
    take(unsafe {
        td_borrow(
            data,
            shape.as_ptr(),
            shape.len(),
            dtype,
            device,
            Arc::into_raw(owner).cast_mut().cast(),
            release::<M>,
            &mut out,
        )
    })?;
    if out.is_null() {
        return Err(Error::internal("libtorch gave no tensor"));
    }
    // SAFETY: on success `out` is a new `at::Tensor*` that nobody else owns, which is what a `C_tensor` is.
    Ok(unsafe { Tensor::from_ptr(out.cast()) })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    struct Numbers(Vec<f32>);

    // SAFETY: a vector that is never written to.
    unsafe impl Memory for Numbers {
        fn data(&self) -> *const u8 {
            self.0.as_ptr().cast()
        }
        fn bytes(&self) -> usize {
            size_of_val(self.0.as_slice())
        }
        fn device(&self) -> Device {
            Device::Cpu
        }
    }

    #[test]
    fn the_owner_lives_as_long_as_the_last_view() {
        let owner = Arc::new(Numbers((0..6u8).map(f32::from).collect()));
        // SAFETY: it is only read.
        let tensor = unsafe { borrow(Arc::clone(&owner), &[2, 3], Kind::Float) }.unwrap();
        let row = tensor.f_select(0, 1).unwrap();
        drop(tensor);
        assert_eq!(Arc::strong_count(&owner), 2);
        assert_eq!(Vec::<f32>::try_from(&row).unwrap(), [3.0, 4.0, 5.0]);
        drop(row);
        assert_eq!(Arc::strong_count(&owner), 1);
    }

    #[test]
    fn a_shape_that_does_not_fill_the_memory_is_refused_and_nothing_is_kept() {
        let owner = Arc::new(Numbers(vec![0.0; 6]));
        for shape in [&[7][..], &[2, 2], &[-1, 6], &[i64::MAX, 4]] {
            // SAFETY: it is refused.
            assert!(unsafe { borrow(Arc::clone(&owner), shape, Kind::Float) }.is_err());
        }
        assert_eq!(Arc::strong_count(&owner), 1);
    }
}
