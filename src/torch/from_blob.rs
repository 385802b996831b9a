//! Tensors over memory that libtorch does not own (`torch::from_blob`).

use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::generator::{check_status, scalar_type};
use diffusion_core::{Error, Result};

unsafe extern "C" {
    fn td_from_blob(
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

/// Memory for tensors.
///
/// # Safety
/// `data` is valid for reads of `bytes` bytes on `device` from any thread, and neither moves nor changes, for as long
/// as the value lives.
pub unsafe trait TensorStorage: Send + Sync + 'static {
    /// Returns the address of the memory.
    fn data(&self) -> *const u8;
    /// Returns the length in bytes.
    fn bytes(&self) -> usize;
    /// Returns the device of the memory.
    fn device(&self) -> Device;
}

extern "C" fn release<M: TensorStorage>(owner: *mut c_void) {
    // SAFETY: the pointer comes from `Arc::into_raw` in `from_blob`, and the shim calls this once.
    drop(unsafe { Arc::from_raw(owner.cast_const().cast::<M>()) });
}

/// Makes a contiguous tensor over the memory of `owner`, which lives until the last tensor over it is dropped.
///
/// # Safety
/// Nothing may write to the tensor or a view of it: other tensors use the same memory, which may be a read-only map of
/// a file.
///
/// # Errors
/// `Internal` for a shape of another length, or a dtype that weights do not have.
pub unsafe fn from_blob<M: TensorStorage>(owner: Arc<M>, shape: &[i64], kind: Kind) -> Result<Tensor> {
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
    // SAFETY: the memory is as long as shape and dtype say and lives as long as the owner, whose count the shim takes
    // over on every path; `shape` is read for its length; `out` has room for one pointer.
    check_status(unsafe {
        td_from_blob(
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
        return Err(Error::internal("libtorch returned no tensor"));
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
    unsafe impl TensorStorage for Numbers {
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
    fn owner_lives_as_long_as_the_last_view() {
        let owner = Arc::new(Numbers((0..6u8).map(f32::from).collect()));
        // SAFETY: it is only read.
        let tensor = unsafe { from_blob(Arc::clone(&owner), &[2, 3], Kind::Float) }.unwrap();
        let view = tensor.f_select(0, 1).unwrap();
        drop(tensor);
        assert_eq!(Arc::strong_count(&owner), 2);
        assert_eq!(Vec::<f32>::try_from(&view).unwrap(), [3.0, 4.0, 5.0]);
        drop(view);
        assert_eq!(Arc::strong_count(&owner), 1);
    }

    #[test]
    fn from_blob_with_another_length_is_refused_and_drops_the_owner() {
        let owner = Arc::new(Numbers(vec![0.0; 6]));
        for shape in [&[7][..], &[2, 2], &[-1, 6], &[i64::MAX, 4]] {
            // SAFETY: it is refused.
            assert!(unsafe { from_blob(Arc::clone(&owner), shape, Kind::Float) }.is_err());
        }
        assert_eq!(Arc::strong_count(&owner), 1);
    }
}
