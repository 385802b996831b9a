//! Pinned memory: memory of the host that a GPU copies from and to while the host goes on.

use std::ffi::{c_char, c_void};
use std::ptr;

use tch::{Kind, Tensor};

use super::generator::check_status;
use diffusion_core::{Error, Result};

unsafe extern "C" {
    fn td_pinned_empty(bytes: usize, out: *mut *mut c_void) -> *mut c_char;
}

/// Tensors begin at multiples of this many bytes.
const ALIGNMENT: usize = 256;
/// The smallest block. libtorch rounds blocks up to a power of two.
const MIN_BLOCK: usize = 1 << 20;

/// Makes an unwritten tensor of bytes in pinned memory.
///
/// # Errors
/// The system has no memory to pin; errors of CUDA, as `Internal`.
pub(super) fn pinned_bytes(bytes: usize) -> Result<Tensor> {
    let mut out = ptr::null_mut();
    // SAFETY: `out` has room for one pointer.
    check_status(unsafe { td_pinned_empty(bytes, &mut out) })?;
    if out.is_null() {
        return Err(Error::internal("libtorch returned no tensor"));
    }
    // SAFETY: on success `out` is a new `at::Tensor*` that nobody else owns, which is what a `C_tensor` is.
    Ok(unsafe { Tensor::from_ptr(out.cast()) })
}

/// Blocks of pinned memory that are filled from the beginning and then used again.
#[derive(Default)]
pub(super) struct PinnedMemory {
    blocks: Vec<Tensor>,
    /// The block that is being filled.
    block: usize,
    /// Used bytes of that block.
    used: usize,
}

impl PinnedMemory {
    /// Returns an unwritten, contiguous tensor, which is valid until [`PinnedMemory::reuse`].
    ///
    /// # Errors
    /// The system has no memory to pin; errors of CUDA, as `Internal`.
    pub fn tensor(&mut self, shape: &[i64], kind: Kind) -> Result<Tensor> {
        let elements: i64 = shape.iter().product();
        let bytes =
            usize::try_from(elements).map_err(|_| Error::internal("a negative size"))? * kind.elt_size_in_bytes();
        let bytes_of = |block: &Tensor| block.numel();
        while self
            .blocks
            .get(self.block)
            .is_some_and(|block| self.used + bytes > bytes_of(block))
        {
            self.block += 1;
            self.used = 0;
        }
        if self.block == self.blocks.len() {
            self.blocks
                .push(pinned_bytes(bytes.max(MIN_BLOCK).next_power_of_two())?);
        }
        let block = self
            .blocks
            .get(self.block)
            .ok_or_else(|| Error::internal("no pinned block"))?;
        let tensor = block
            .f_narrow(0, self.used as i64, bytes as i64)?
            .f_view_dtype(kind)?
            .f_view(shape)?;
        self.used += bytes.next_multiple_of(ALIGNMENT);
        Ok(tensor)
    }

    /// Makes all of the memory available again.
    pub fn reuse(&mut self) {
        self.block = 0;
        self.used = 0;
    }

    /// Gives up the memory without freeing it.
    pub fn leak(&mut self) {
        std::mem::take(&mut self.blocks).into_iter().for_each(std::mem::forget);
    }
}
