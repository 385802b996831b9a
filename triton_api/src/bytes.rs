//! The layout of a BYTES tensor (`TYPE_STRING`): for each element its length as a little-endian
//! `u32`, then that many bytes.
//!
//! Such a tensor comes from the client as it is. [`decode_bytes`] believes nothing in it and
//! allocates in proportion to what was really sent.

use std::fmt;

use crate::error::Error;

/// The bytes of the length before each element.
pub const LENGTH_PREFIX: usize = size_of::<u32>();

/// What is wrong with a BYTES tensor. Says positions and sizes, never contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BytesError {
    /// The shape asks for no element at all.
    NoElements,
    /// The data end before the last element that the shape asks for.
    TooFewElements {
        /// Elements that the shape asks for.
        expected: usize,
        /// Whole elements that the data hold.
        found: usize,
    },
    /// The data end inside the length of an element.
    TruncatedLength {
        /// Which element, from 0.
        element: usize,
        /// Bytes that are left, fewer than [`LENGTH_PREFIX`].
        left: usize,
    },
    /// An element is longer than what is left of the data.
    TruncatedElement {
        /// Which element, from 0.
        element: usize,
        /// Its length as it is given.
        length: usize,
        /// Bytes that are left.
        left: usize,
    },
    /// Bytes follow the last element that the shape asks for.
    TrailingBytes {
        /// Elements that the shape asks for.
        expected: usize,
        /// How many bytes follow them.
        left: usize,
    },
}

impl fmt::Display for BytesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoElements => write!(f, "the tensor has no element"),
            Self::TooFewElements { expected, found } => {
                write!(f, "the shape asks for {expected} elements but the data hold {found}")
            }
            Self::TruncatedLength { element, left } => write!(
                f,
                "the data end inside the length of element {element}: {left} of \
                 {LENGTH_PREFIX} bytes"
            ),
            Self::TruncatedElement { element, length, left } => write!(
                f,
                "element {element} is said to have {length} bytes but {left} are left"
            ),
            Self::TrailingBytes { expected, left } => {
                write!(f, "{left} bytes follow the {expected} elements that the shape asks for")
            }
        }
    }
}

impl std::error::Error for BytesError {}

impl From<BytesError> for Error {
    /// An INVALID_ARG error; add the model and the input with [`Error::context`].
    fn from(error: BytesError) -> Self {
        Error::invalid_arg(error.to_string())
    }
}

/// The elements of a BYTES tensor, which must be `expected` in number and fill `data`.
///
/// # Errors
///
/// See [`BytesError`]. An `expected` of 0 is an error.
pub fn decode_bytes(data: &[u8], expected: usize) -> Result<Vec<&[u8]>, BytesError> {
    if expected == 0 {
        return Err(BytesError::NoElements);
    }
    // Each element takes its length at least, so this bounds the allocation by the data.
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

/// The bytes that [`encode_bytes`] makes of these elements.
///
/// # Errors
///
/// INVALID_ARG if an element is longer than a `u32` can say, or all together than a `usize`.
pub fn encoded_len<T: AsRef<[u8]>>(elements: &[T]) -> Result<usize, Error> {
    elements.iter().try_fold(0_usize, |sum, element| {
        let length = element.as_ref().len();
        if u32::try_from(length).is_err() {
            return Err(Error::invalid_arg(format!(
                "an element of {length} bytes is too long for a BYTES tensor"
            )));
        }
        sum.checked_add(LENGTH_PREFIX + length)
            .ok_or_else(|| Error::invalid_arg("the BYTES tensor is too long"))
    })
}

/// A BYTES tensor of these elements.
///
/// # Errors
///
/// As [`encoded_len`].
pub fn encode_bytes<T: AsRef<[u8]>>(elements: &[T]) -> Result<Vec<u8>, Error> {
    let mut data = Vec::with_capacity(encoded_len(elements)?);
    for element in elements {
        let (prefix, contents) = split_element(element.as_ref());
        data.extend_from_slice(&prefix);
        data.extend_from_slice(contents);
    }
    Ok(data)
}

/// An element as it is laid out. The length has been checked by [`encoded_len`].
pub(crate) fn split_element(contents: &[u8]) -> ([u8; LENGTH_PREFIX], &[u8]) {
    let length = u32::try_from(contents.len()).unwrap_or(u32::MAX);
    (length.to_le_bytes(), contents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn hostile_tensors_are_errors() {
        let one = [1, 0, 0, 0, b'a'];
        let cases: [(&[u8], usize, BytesError); 9] = [
            (&[], 0, BytesError::NoElements),
            (&one, 0, BytesError::NoElements),
            (&[], 1, BytesError::TooFewElements { expected: 1, found: 0 }),
            (
                &one,
                usize::MAX,
                BytesError::TooFewElements {
                    expected: usize::MAX,
                    found: 1,
                },
            ),
            (&one[..3], 1, BytesError::TruncatedLength { element: 0, left: 3 }),
            (
                &one[..4],
                1,
                BytesError::TruncatedElement {
                    element: 0,
                    length: 1,
                    left: 0,
                },
            ),
            (
                &[255, 255, 255, 255, b'a'],
                1,
                BytesError::TruncatedElement {
                    element: 0,
                    length: 4_294_967_295,
                    left: 1,
                },
            ),
            (
                &[1, 0, 0, 0, b'a', 0],
                1,
                BytesError::TrailingBytes { expected: 1, left: 1 },
            ),
            (
                &[0, 0, 0, 0, 0, 0, 0, 0],
                1,
                BytesError::TrailingBytes { expected: 1, left: 4 },
            ),
        ];
        for (data, expected, error) in cases {
            assert_eq!(decode_bytes(data, expected), Err(error), "{data:?}");
        }
    }

    #[test]
    fn an_empty_string_is_an_element() {
        assert_eq!(decode_bytes(&[0; 4], 1), Ok(vec![&[][..]]));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(elements in vec(vec(any::<u8>(), 0..40), 1..12)) {
            let data = encode_bytes(&elements).map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert_eq!(Ok(data.len()), encoded_len(&elements));
            let decoded = decode_bytes(&data, elements.len());
            let expected: Vec<&[u8]> = elements.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(decoded, Ok(expected));
        }

        #[test]
        fn any_bytes_decode_to_what_encodes_to_them(data in vec(any::<u8>(), 0..80), n in 0_usize..9) {
            if let Ok(elements) = decode_bytes(&data, n) {
                prop_assert_eq!(elements.len(), n);
                prop_assert_eq!(encode_bytes(&elements), Ok(data.clone()));
            }
        }

        // Small lengths make prefixes that are often plausible.
        #[test]
        fn a_cut_tensor_is_an_error(elements in vec(vec(any::<u8>(), 0..6), 1..6), cut in any::<prop::sample::Index>()) {
            let data = encode_bytes(&elements).map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert!(decode_bytes(&data[..cut.index(data.len())], elements.len()).is_err());
            prop_assert!(decode_bytes(&data, elements.len() + 1).is_err());
            prop_assert!(decode_bytes(&data, elements.len() - 1).is_err());
        }
    }
}
