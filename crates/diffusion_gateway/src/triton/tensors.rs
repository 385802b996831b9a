//! Tensors of texts: Triton's data type `BYTES`.
//!
//! Each element is its length in 4 bytes, little-endian, and its bytes. Source: the KServe protocol, version 2,
//! extension "binary tensor data".

use super::messages::TensorHeader;

/// Makes an input of one batch element with one value: shape `[1, 1]`.
pub fn input(name: &str, value: &[u8]) -> (TensorHeader, Vec<u8>) {
    let header = TensorHeader {
        name: name.to_owned(),
        datatype: "BYTES".into(),
        shape: vec![1, 1],
    };
    // A body of HTTP is limited to far less than 4 GiB.
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    let mut raw = Vec::with_capacity(value.len() + 4);
    raw.extend(length.to_le_bytes());
    raw.extend(value);
    (header, raw)
}

/// Returns the elements of a tensor; `None` if the bytes are no tensor of texts.
pub fn elements(mut raw: &[u8]) -> Option<Vec<&str>> {
    let mut elements = Vec::new();
    while !raw.is_empty() {
        let (length, rest) = raw.split_first_chunk::<4>()?;
        let (element, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        elements.push(std::str::from_utf8(element).ok()?);
        raw = rest;
    }
    Some(elements)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_an_input_are_its_value() {
        let (header, raw) = input("prompt", "näher".as_bytes());
        assert_eq!(header.shape, [1, 1]);
        assert_eq!(elements(&raw), Some(vec!["näher"]));
        assert_eq!(elements(&[raw.clone(), raw].concat()), Some(vec!["näher", "näher"]));
        assert_eq!(elements(b""), Some(vec![]));
    }

    #[test]
    fn elements_of_damaged_bytes_are_none() {
        for damaged in [
            &b"\x01"[..],
            b"\x02\0\0\0a",
            b"\xff\xff\xff\xffa",
            b"\x01\0\0\0\xff",
            b"\x01\0\0\0ab",
        ] {
            assert_eq!(elements(damaged), None, "{damaged:?}");
        }
    }
}
