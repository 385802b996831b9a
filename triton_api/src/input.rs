//! Input tensors of a request.

use std::borrow::Cow;
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

    /// Returns the bytes of the tensor (`TRITONBACKEND_InputBuffer`): borrowed from a single buffer,
    /// or copied from several.
    ///
    /// # Errors
    ///
    /// INVALID_ARG if the tensor has more than `limit` bytes, checked before any allocation.
    /// UNSUPPORTED if a buffer is in GPU memory. INTERNAL if the sizes of the buffers do not add
    /// up to that of the tensor.
    pub fn contents(&self, limit: usize) -> Result<Cow<'a, [u8]>, Error> {
        let name = self.name;
        let byte_size = usize::try_from(self.byte_size).unwrap_or(usize::MAX);
        if byte_size > limit {
            return Err(Error::invalid_arg(format!(
                "input '{name}': expected at most {limit} bytes, got {}",
                self.byte_size
            )));
        }
        let mut pieces: Vec<&'a [u8]> = Vec::new();
        let mut left = byte_size;
        for index in 0..self.buffer_count {
            let piece = self.buffer(index)?;
            left = left
                .checked_sub(piece.len())
                .ok_or_else(|| Error::internal(format!("input '{name}': the buffers exceed the size of the tensor")))?;
            if !piece.is_empty() {
                pieces.push(piece);
            }
        }
        if left != 0 {
            return Err(Error::internal(format!(
                "input '{name}': the buffers are {left} bytes shorter than the tensor"
            )));
        }
        Ok(match pieces.as_slice() {
            [] => Cow::Borrowed(&[]),
            [piece] => Cow::Borrowed(piece),
            several => Cow::Owned(several.concat()),
        })
    }

    fn buffer(&self, index: u32) -> Result<&'a [u8], Error> {
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
                "input '{}': GPU memory is not supported; send the tensor in host memory",
                self.name
            )));
        }
        let size = usize::try_from(size)
            .map_err(|_| Error::internal(format!("input '{}': the size of a buffer is out of range", self.name)))?;
        // SAFETY: Triton returned `size` bytes of host memory, which live as long as the request.
        unsafe { slice(buffer.cast(), size) }
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
