//! The layout of a BYTES tensor (`TYPE_STRING`): for each element its length as a little-endian
//! `u32`, then that many bytes.
//!
//! The server passes such a tensor on unchecked. [`decode_bytes`] checks everything in it and
//! allocates in proportion to the size of the data.

use std::fmt;

use crate::error::Error;

/// The size of the length before each element, in bytes.
pub const LENGTH_PREFIX: usize = size_of::<u32>();

/// A malformed BYTES tensor. The message has positions and sizes, never contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BytesError {
    /// The shape has no elements.
    NoElements,
    /// The data end before the last element.
    TooFewElements {
        /// Number of elements in the shape.
        expected: usize,
        /// Number of complete elements in the data.
        found: usize,
    },
    /// The data end inside the length of an element.
    TruncatedLength {
        /// Index of the element, from 0.
        element: usize,
        /// Remaining bytes, fewer than [`LENGTH_PREFIX`].
        left: usize,
    },
    /// An element is longer than the remaining data.
    TruncatedElement {
        /// Index of the element, from 0.
        element: usize,
        /// The length given for the element.
        length: usize,
        /// Remaining bytes.
        left: usize,
    },
    /// Bytes follow the last element.
    TrailingBytes {
        /// Number of elements in the shape.
        expected: usize,
        /// Number of extra bytes.
        left: usize,
    },
}

impl fmt::Display for BytesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoElements => write!(f, "the tensor has no elements"),
            Self::TooFewElements { expected, found } => {
                write!(f, "expected {expected} elements, as in the shape, got {found}")
            }
            Self::TruncatedLength { element, left } => write!(
                f,
                "the length of element {element} is truncated: got {left} of {LENGTH_PREFIX} bytes"
            ),
            Self::TruncatedElement { element, length, left } => {
                write!(f, "element {element} is truncated: expected {length} bytes, got {left}")
            }
            Self::TrailingBytes { expected, left } => {
                write!(f, "{left} bytes follow the last of {expected} elements")
            }
        }
    }
}

impl std::error::Error for BytesError {}

impl From<BytesError> for Error {
    /// Returns an INVALID_ARG error; add the model and the input with [`Error::context`].
    fn from(error: BytesError) -> Self {
        Error::invalid_arg(error.to_string())
    }
}

/// Splits a BYTES tensor into its elements. `data` must have exactly `expected` elements.
///
/// # Errors
///
/// See [`BytesError`]. An `expected` of 0 is an error.
pub fn decode_bytes(data: &[u8], expected: usize) -> Result<Vec<&[u8]>, BytesError> {
    if expected == 0 {
        return Err(BytesError::NoElements);
    }
    // Every element has a length prefix, so the size of the data bounds the allocation.
    let mut elements = Vec::with_capacity(expected.min(data.len() / LENGTH_PREFIX));
    let mut rest = data;
    for element in 0..expected {
        if rest.is_empty() {
            return Err(BytesError::TooFewElements {
                expected,
                found: element,
            });
        }
        let Some((prefix, after)) = rest.split_first_chunk::<LENGTH_PREFIX>() else {
            return Err(BytesError::TruncatedLength {
                element,
                left: rest.len(),
            });
        };
        let truncated = |length| BytesError::TruncatedElement {
            element,
            length,
            left: after.len(),
        };
        let length = usize::try_from(u32::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
        let (contents, after) = after.split_at_checked(length).ok_or_else(|| truncated(length))?;
        elements.push(contents);
        rest = after;
    }
    if rest.is_empty() {
        Ok(elements)
    } else {
        Err(BytesError::TrailingBytes {
            expected,
            left: rest.len(),
        })
    }
}

/// Returns the size in bytes of the tensor that [`encode_bytes`] builds.
///
/// # Errors
///
/// INVALID_ARG if the length of an element exceeds `u32`, or that of the tensor `usize`.
pub fn encoded_len<T: AsRef<[u8]>>(elements: &[T]) -> Result<usize, Error> {
    elements.iter().try_fold(0_usize, |sum, element| {
        let length = element.as_ref().len();
        if u32::try_from(length).is_err() {
            return Err(Error::invalid_arg(format!(
                "an element of {length} bytes exceeds the limit of a BYTES tensor, {}",
                u32::MAX
            )));
        }
        sum.checked_add(LENGTH_PREFIX + length)
            .ok_or_else(|| Error::invalid_arg("the BYTES tensor is too long"))
    })
}

/// Builds a BYTES tensor from its elements.
///
/// # Errors
///
/// Those of [`encoded_len`].
pub fn encode_bytes<T: AsRef<[u8]>>(elements: &[T]) -> Result<Vec<u8>, Error> {
    let mut data = Vec::with_capacity(encoded_len(elements)?);
    for element in elements {
        let (prefix, contents) = split_element(element.as_ref());
        data.extend_from_slice(&prefix);
        data.extend_from_slice(contents);
    }
    Ok(data)
}

/// Returns the length prefix and the contents of an element. [`encoded_len`] has checked the length.
pub(crate) fn split_element(contents: &[u8]) -> ([u8; LENGTH_PREFIX], &[u8]) {
    let length = u32::try_from(contents.len()).unwrap_or(u32::MAX);
    (length.to_le_bytes(), contents)
}

#[cfg(test)]
mod tests;
