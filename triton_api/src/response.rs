//! Responses: output tensors and parameters.

use std::mem;
use std::ptr::NonNull;

use crate::bytes::{LENGTH_PREFIX, encoded_len, split_element};
use crate::error::{Error, OwnedError, check, non_null};
use crate::input::element_count;
use crate::types::{DataType, MemoryType};
use crate::{sys, text};

/// The value of a response parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parameter {
    /// A string, with U+FFFD for each NUL.
    String(String),
    /// A signed integer.
    Int(i64),
    /// A boolean.
    Bool(bool),
}

impl From<&str> for Parameter {
    fn from(value: &str) -> Self {
        Self::String(value.to_owned())
    }
}

impl From<String> for Parameter {
    fn from(value: String) -> Self {
        Self::String(value)
    }
}

impl From<i64> for Parameter {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<bool> for Parameter {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

/// An output tensor, which will be copied into Triton's buffer.
#[derive(Debug, Clone, Copy)]
pub struct OutputTensor<'a> {
    name: &'a str,
    shape: &'a [i64],
    data: Data<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Data<'a> {
    Raw(DataType, &'a [u8]),
    Bytes(&'a [&'a [u8]]),
}

impl<'a> OutputTensor<'a> {
    /// Returns a tensor with these bytes, in row-major order.
    pub fn raw(name: &'a str, datatype: DataType, shape: &'a [i64], data: &'a [u8]) -> Self {
        Self {
            name,
            shape,
            data: Data::Raw(datatype, data),
        }
    }

    /// Returns a BYTES tensor with these elements, which will be written straight into Triton's buffer.
    pub fn bytes(name: &'a str, shape: &'a [i64], elements: &'a [&'a [u8]]) -> Self {
        Self {
            name,
            shape,
            data: Data::Bytes(elements),
        }
    }

    /// Returns the tensor's name.
    pub fn name(&self) -> &'a str {
        self.name
    }

    fn datatype(&self) -> DataType {
        match self.data {
            Data::Raw(datatype, _) => datatype,
            Data::Bytes(_) => DataType::Bytes,
        }
    }

    /// Returns the tensor's size in bytes; an error if the data do not fit the shape.
    fn byte_size(&self) -> Result<usize, Error> {
        let elements = element_count(self.shape);
        let (fits, size) = match self.data {
            Data::Bytes(parts) => (elements == Some(parts.len()), encoded_len(parts)?),
            Data::Raw(datatype, data) => {
                let fits = match datatype.byte_size() {
                    None => elements.is_some(),
                    Some(size) => elements.and_then(|count| count.checked_mul(size)) == Some(data.len()),
                };
                (fits, data.len())
            }
        };
        if fits {
            Ok(size)
        } else {
            Err(Error::internal(format!(
                "output '{}': the data do not fit the shape",
                self.name
            )))
        }
    }

    /// Writes the tensor into a buffer of [`Self::byte_size`] bytes.
    ///
    /// # Safety
    ///
    /// `buffer` points to that many bytes, and nothing else uses them.
    unsafe fn write(&self, buffer: *mut u8) {
        let mut at = buffer;
        let mut put = |part: &[u8]| {
            // SAFETY: the parts add up to the size that the caller guarantees.
            unsafe {
                at.copy_from_nonoverlapping(part.as_ptr(), part.len());
                at = at.add(part.len());
            }
        };
        match self.data {
            Data::Raw(_, data) => put(data),
            Data::Bytes(elements) => {
                for element in elements {
                    let (prefix, contents): ([u8; LENGTH_PREFIX], _) = split_element(element);
                    put(&prefix);
                    put(contents);
                }
            }
        }
    }
}

/// An owned `TRITONBACKEND_Response`, deleted on drop unless it was sent.
#[derive(Debug)]
pub(crate) struct Response(NonNull<sys::TRITONBACKEND_Response>);

impl Response {
    /// Creates the response to a request (`TRITONBACKEND_ResponseNew`).
    ///
    /// # Safety
    ///
    /// `request` is live.
    pub(crate) unsafe fn new(request: NonNull<sys::TRITONBACKEND_Request>) -> Result<Self, Error> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the caller guarantees a live request; the caller owns a new response.
        unsafe {
            check(sys::TRITONBACKEND_ResponseNew(&mut raw, request.as_ptr()))?;
        }
        Ok(Self(non_null(raw, "response")?))
    }

    /// Sets a parameter (`TRITONBACKEND_ResponseSetStringParameter` and its variants).
    pub(crate) fn set_parameter(&mut self, name: &str, value: &Parameter) -> Result<(), Error> {
        let name = text::to_c(name);
        // SAFETY: the response is live, and the strings are copied by the call.
        unsafe {
            check(match value {
                Parameter::String(value) => {
                    let value = text::to_c(value);
                    sys::TRITONBACKEND_ResponseSetStringParameter(self.0.as_ptr(), name.as_ptr(), value.as_ptr())
                }
                Parameter::Int(value) => {
                    sys::TRITONBACKEND_ResponseSetIntParameter(self.0.as_ptr(), name.as_ptr(), *value)
                }
                Parameter::Bool(value) => {
                    sys::TRITONBACKEND_ResponseSetBoolParameter(self.0.as_ptr(), name.as_ptr(), *value)
                }
            })
        }
    }

    /// Adds an output and copies its data (`TRITONBACKEND_ResponseOutput`,
    /// `TRITONBACKEND_OutputBuffer`).
    pub(crate) fn add_output(&mut self, tensor: &OutputTensor<'_>) -> Result<(), Error> {
        let size = tensor.byte_size()?;
        let name = text::to_c(tensor.name);
        let dims =
            u32::try_from(tensor.shape.len()).map_err(|_| Error::internal("an output has too many dimensions"))?;
        let mut output = std::ptr::null_mut();
        let mut buffer = std::ptr::null_mut();
        // A request for host memory; Triton returns the actual type.
        let mut memory_type = MemoryType::Cpu.raw();
        let mut memory_type_id = 0;
        // SAFETY: the response is live; name and shape outlive the call, which copies them; the
        // output lives as long as its response.
        unsafe {
            check(sys::TRITONBACKEND_ResponseOutput(
                self.0.as_ptr(),
                &mut output,
                name.as_ptr(),
                tensor.datatype().raw(),
                tensor.shape.as_ptr(),
                dims,
            ))?;
            check(sys::TRITONBACKEND_OutputBuffer(
                non_null(output, "output")?.as_ptr(),
                &mut buffer,
                size as u64,
                &mut memory_type,
                &mut memory_type_id,
            ))?;
        }
        if !MemoryType::from_raw(memory_type).is_some_and(MemoryType::is_host) {
            return Err(Error::unsupported(format!(
                "output '{}': GPU memory is not supported; request the tensor in host memory",
                tensor.name
            )));
        }
        if size > 0 {
            let buffer = non_null(buffer, "buffer of an output")?;
            // SAFETY: host memory of `size` bytes that Triton allocated for this output alone.
            unsafe { tensor.write(buffer.as_ptr().cast()) };
        }
        Ok(())
    }

    /// Sends the final response (`TRITONBACKEND_ResponseSend`), with an error if given. Triton owns
    /// the response afterwards, even if sending fails.
    pub(crate) fn send(self, error: Option<&Error>) -> Result<(), Error> {
        self.send_with(sys::TRITONSERVER_RESPONSE_COMPLETE_FINAL, error)
    }

    /// Sends a response that others follow, as [`Response::send`] does.
    pub(crate) fn send_partial(self) -> Result<(), Error> {
        self.send_with(0, None)
    }

    fn send_with(self, flags: u32, error: Option<&Error>) -> Result<(), Error> {
        let error = error.map(OwnedError::new);
        let raw = error.as_ref().map_or(std::ptr::null_mut(), OwnedError::as_ptr);
        let response = self.0;
        // Triton owns the response now, so the destructor must not delete it.
        mem::forget(self);
        // SAFETY: the response was owned and is not used again; the error remains owned here
        // and outlives the call.
        unsafe { check(sys::TRITONBACKEND_ResponseSend(response.as_ptr(), flags, raw)) }
    }
}

impl Drop for Response {
    fn drop(&mut self) {
        // SAFETY: owned by `self`, not sent, and deleted here only.
        let _ = unsafe { check(sys::TRITONBACKEND_ResponseDelete(self.0.as_ptr())) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::encode_bytes;

    #[test]
    fn byte_size_data_not_fitting_the_shape_is_error() {
        let raw = |shape, data| OutputTensor::raw("y", DataType::Int32, shape, data).byte_size();
        assert_eq!(raw(&[1, 2], &[0; 8]), Ok(8));
        assert!(raw(&[1, 2], &[0; 7]).is_err());
        assert!(raw(&[-1], &[0; 4]).is_err());
        let bytes = |shape, parts| OutputTensor::bytes("y", shape, parts).byte_size();
        assert_eq!(bytes(&[2], &[b"ab", b""]), Ok(10));
        assert!(bytes(&[1], &[b"ab", b""]).is_err());
    }

    #[test]
    fn write_bytes_tensor_matches_encode_bytes() {
        let elements: [&[u8]; 3] = [b"one", b"", b"three"];
        let tensor = OutputTensor::bytes("y", &[3], &elements);
        let mut buffer = vec![0; tensor.byte_size().unwrap_or_default()];
        // SAFETY: the buffer has the tensor's size.
        unsafe { tensor.write(buffer.as_mut_ptr()) };
        assert_eq!(Ok(buffer), encode_bytes(&elements));
    }
}
