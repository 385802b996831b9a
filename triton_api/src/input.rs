//! Input tensors of a request.

use std::marker::PhantomData;
use std::ptr::NonNull;

use crate::error::{Error, check, non_null};
use crate::types::{DataType, MemoryType};
use crate::{sys, text};

/// One input tensor (`TRITONBACKEND_Input`), borrowed from its request.
#[derive(Debug)]
pub struct Input<'a> {
    raw: NonNull<sys::TRITONBACKEND_Input>,
    name: &'a str,
    datatype: DataType,
    shape: &'a [i64],
    byte_size: u64,
    buffer_count: u32,
    request: PhantomData<&'a ()>,
}

impl<'a> Input<'a> {
    /// Reads the properties of an input (`TRITONBACKEND_InputProperties`).
    ///
    /// # Safety
    ///
    /// `raw` belongs to a request that is not released during `'a`.
    pub(crate) unsafe fn new(raw: NonNull<sys::TRITONBACKEND_Input>) -> Result<Self, Error> {
        let mut name = std::ptr::null();
        let mut datatype = sys::TRITONSERVER_TYPE_INVALID;
        let mut shape = std::ptr::null();
        let mut dims_count = 0;
        let mut byte_size = 0;
        let mut buffer_count = 0;
        // SAFETY: the input is live and the results point to locals; name and shape live as
        // long as the request.
        let (name, shape) = unsafe {
            check(sys::TRITONBACKEND_InputProperties(
                raw.as_ptr(),
                &mut name,
                &mut datatype,
                &mut shape,
                &mut dims_count,
                &mut byte_size,
                &mut buffer_count,
            ))?;
            let name = text::borrow_c::<'a>(name)
                .ok_or_else(|| Error::internal("Triton passed a null pointer for the name of an input"))?;
            (name, slice(shape, dims_count as usize)?)
        };
        let datatype = DataType::from_raw(datatype)
            .ok_or_else(|| Error::unsupported(format!("input '{name}': unknown data type {datatype}")))?;
        Ok(Self {
            raw,
            name,
            datatype,
            shape,
            byte_size,
            buffer_count,
            request: PhantomData,
        })
    }

    /// Returns the tensor's name.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Returns the type of the tensor's elements.
    pub fn datatype(&self) -> DataType {
        self.datatype
    }

    /// Returns the tensor's dimensions, including the batch dimension if the model has one.
    pub fn shape(&self) -> &'a [i64] {
        self.shape
    }

    /// Returns the size of all buffers together, in bytes.
    pub fn byte_size(&self) -> u64 {
        self.byte_size
    }

    /// Returns the number of buffers that hold the tensor.
    pub fn buffer_count(&self) -> u32 {
        self.buffer_count
    }

    /// Returns the product of the dimensions; 1 for a scalar.
    ///
    /// # Errors
    ///
    /// INVALID_ARG if a dimension is negative or the product is not a `usize`.
    pub fn element_count(&self) -> Result<usize, Error> {
        element_count(self.shape)
            .ok_or_else(|| Error::invalid_arg(format!("input '{}': the shape is out of range", self.name)))
    }

    /// Copies the bytes of the tensor (`TRITONBACKEND_InputBuffer`). The caller may rely on the copy: a client can write to an
    /// input in shared memory at any time.
    ///
    /// # Errors
    ///
    /// INVALID_ARG if the tensor has more than `limit` bytes, checked before any allocation.
    /// UNSUPPORTED if a buffer is in GPU memory. UNAVAILABLE if there is no memory for the copy. INTERNAL if the sizes of
    /// the buffers do not add up to that of the tensor.
    pub fn contents(&self, limit: usize) -> Result<Vec<u8>, Error> {
        let name = self.name;
        let byte_size = usize::try_from(self.byte_size).unwrap_or(usize::MAX);
        if byte_size > limit {
            return Err(Error::invalid_arg(format!(
                "input '{name}': expected at most {limit} bytes, got {}",
                self.byte_size
            )));
        }
        let mut copy = Vec::new();
        copy.try_reserve_exact(byte_size)
            .map_err(|_| Error::out_of_memory(format!("input '{name}' needs {byte_size} bytes")))?;
        for index in 0..self.buffer_count {
            self.append_buffer(index, &mut copy)?;
        }
        if copy.len() != byte_size {
            return Err(Error::internal(format!(
                "input '{name}': the buffers are {} bytes shorter than the tensor",
                byte_size - copy.len()
            )));
        }
        Ok(copy)
    }

    /// Appends a buffer to `copy`, which has reserved the size of the tensor.
    fn append_buffer(&self, index: u32, copy: &mut Vec<u8>) -> Result<(), Error> {
        let name = self.name;
        let mut buffer = std::ptr::null();
        let mut size = 0;
        let mut memory_type = sys::TRITONSERVER_MEMORY_CPU;
        let mut memory_type_id = 0;
        // SAFETY: the input is live for 'a and the results point to locals.
        unsafe {
            check(sys::TRITONBACKEND_InputBuffer(
                self.raw.as_ptr(),
                index,
                &mut buffer,
                &mut size,
                &mut memory_type,
                &mut memory_type_id,
            ))?;
        }
        if !MemoryType::from_raw(memory_type).is_some_and(MemoryType::is_host) {
            return Err(Error::unsupported(format!(
                "input '{name}': GPU memory is not supported; send the tensor in host memory"
            )));
        }
        let size = usize::try_from(size)
            .map_err(|_| Error::internal(format!("input '{name}': the size of a buffer is out of range")))?;
        if size > copy.capacity() - copy.len() {
            return Err(Error::internal(format!(
                "input '{name}': the buffers exceed the size of the tensor"
            )));
        }
        if size == 0 {
            return Ok(());
        }
        let buffer = non_null(buffer.cast_mut(), "contents of an input")?;
        // SAFETY: Triton returned `size` bytes of host memory, which live as long as the request; the copy has room for them
        // behind its end. The bytes are read once and through a pointer, since a client may write to them meanwhile.
        unsafe {
            std::ptr::copy_nonoverlapping(buffer.as_ptr().cast::<u8>(), copy.as_mut_ptr().add(copy.len()), size);
            copy.set_len(copy.len() + size);
        }
        Ok(())
    }
}

/// Returns the product of the dimensions; `None` if one is negative or the product overflows.
pub(crate) fn element_count(shape: &[i64]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1_usize, |product, &dim| product.checked_mul(usize::try_from(dim).ok()?))
}

/// Returns a slice of C memory. The pointer is ignored if the length is 0.
///
/// # Safety
///
/// `pointer` is null or points to `length` values that live and do not change during `'a`.
unsafe fn slice<'a, T>(pointer: *const T, length: usize) -> Result<&'a [T], Error> {
    if length == 0 {
        return Ok(&[]);
    }
    let pointer = non_null(pointer.cast_mut(), "contents of an input")?;
    // SAFETY: not null, and the caller guarantees the rest.
    Ok(unsafe { std::slice::from_raw_parts(pointer.as_ptr(), length) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn element_count_negative_or_overflowing_shape_is_none() {
        assert_eq!(element_count(&[]), Some(1));
        assert_eq!(element_count(&[2, 3]), Some(6));
        assert_eq!(element_count(&[4, 0]), Some(0));
        assert_eq!(element_count(&[2, -1]), None);
        assert_eq!(element_count(&[i64::MAX, 3]), None);
    }
}
