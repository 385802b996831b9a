//! Base64 text of an input tensor to the bytes of a file.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use diffusion_core::memory::check_available;
use diffusion_core::{Error, Result};

/// The standard alphabet (RFC 4648, section 4). Padding is optional and bits after the last byte are ignored, as in
/// Python's `b64decode`.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Decodes base64 or a `data:` URL of base64. White space is ignored.
///
/// # Errors
/// InvalidArgument for a text that is longer than `max_bytes`, empty or not base64, and for a `data:` URL of another
/// encoding.
pub(super) fn decode(text: &[u8], max_bytes: usize) -> Result<Vec<u8>> {
    if text.len() > max_bytes {
        return Err(Error::invalid_argument(format!(
            "{} bytes of base64 exceed the limit of {max_bytes}",
            text.len()
        )));
    }
    // The text without white space, and the file.
    check_available(2 * text.len() as u64, "decoding base64")?;
    let text = without_space(payload(text.trim_ascii_start())?);
    if text.is_empty() {
        return Err(Error::invalid_argument("the text is empty"));
    }
    LENIENT
        .decode(&text)
        .map_err(|_| Error::invalid_argument("the text is not base64 (RFC 4648, section 4)"))
}

/// Returns the part after the comma of a `data:` URL (RFC 2397), or all of another text.
fn payload(text: &[u8]) -> Result<&[u8]> {
    const SCHEME: &[u8] = b"data:";
    let is_url = text
        .get(..SCHEME.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(SCHEME));
    if !is_url {
        return Ok(text);
    }
    let (kind, payload) = text
        .iter()
        .position(|byte| *byte == b',')
        .map(|comma| (&text[..comma], &text[comma + 1..]))
        .ok_or_else(|| Error::invalid_argument("the data: URL has no comma before its data"))?;
    let kind = kind.trim_ascii_end().to_ascii_lowercase();
    if !kind.ends_with(b";base64") {
        return Err(Error::invalid_argument("the data: URL is not encoded with base64"));
    }
    Ok(payload)
}

/// Removes ASCII white space, which some encoders put between lines.
fn without_space(text: &[u8]) -> Cow<'_, [u8]> {
    let is_space = |byte: &u8| byte.is_ascii_whitespace() || *byte == b'\x0b';
    if text.iter().any(is_space) {
        Cow::Owned(text.iter().copied().filter(|byte| !is_space(byte)).collect())
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    #[test]
    fn padding_space_and_urls_are_accepted() {
        for text in [
            "aGVsbG8=",
            "aGVsbG8",
            "aGVs\r\nbG8=\n",
            " a G V s\tb G 8 = ",
            "data:image/png;base64,aGVsbG8=",
            "DATA:image/png;charset=utf-8;BASE64,aGVsbG8=",
            "data:;base64,\naGVsbG8=",
            "\ndata:image/x-no-such;base64 ,aGVsbG8=",
        ] {
            assert_eq!(decode(text.as_bytes(), 64).unwrap(), b"hello", "{text:?}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        let long = "A".repeat(65);
        for (text, expected) in [
            ("", "empty"),
            (" \n\t", "empty"),
            ("data:image/png;base64,", "empty"),
            ("data:image/png,aGVsbG8=", "not encoded with base64"),
            ("data:image/png;base64", "no comma"),
            ("aGVs_G8-", "not base64"),
            ("aGVsbG8=aGVs", "not base64"),
            ("aGVsb", "not base64"),
            ("\u{e9}", "not base64"),
            (&long, "65 bytes of base64 exceed the limit of 64"),
        ] {
            let error = decode(text.as_bytes(), 64).unwrap_err();
            assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
            assert!(error.to_string().contains(expected), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn base64_round_trip_keeps_the_file(file in prop::collection::vec(any::<u8>(), 1..200)) {
            let text = STANDARD.encode(&file);
            prop_assert_eq!(decode(text.as_bytes(), text.len()).unwrap(), file);
        }

        #[test]
        fn decode_never_panics(text in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&text, 100);
        }
    }
}
