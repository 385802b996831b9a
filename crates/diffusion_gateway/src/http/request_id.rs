//! Ids of requests: the client's, or a new one.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// The header of requests and responses.
pub const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id of a client.
const MAX_BYTES: usize = 128;

/// The id of a request: 1 to 128 letters, digits, `-`, `_` and `.`.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestId(String);

impl RequestId {
    /// Takes the id that a client sent, or makes one of 32 hexadecimal digits.
    pub fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(HEADER).and_then(|value| value.to_str().ok());
        match given.filter(|id| is_valid(id)) {
            Some(id) => Self(id.to_owned()),
            None => Self::random(),
        }
    }

    fn random() -> Self {
        let mut bytes = [0; 16];
        // Without random numbers, all requests have one id and are served all the same.
        let _ = getrandom::fill(&mut bytes);
        Self(format!("{:032x}", u128::from_be_bytes(bytes)))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the value of the header.
    pub fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.0).ok()
    }
}

fn is_valid(id: &str) -> bool {
    (1..=MAX_BYTES).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn of(id: &str) -> String {
        let headers = HeaderMap::from_iter([(HEADER, id.parse().unwrap())]);
        RequestId::of(&headers).as_str().to_owned()
    }

    #[test]
    fn a_plain_id_is_kept_and_any_other_replaced() {
        assert_eq!(of("job-1_a.B"), "job-1_a.B");
        for other in ["", "a b", "a\tb", "{}", &"a".repeat(129)] {
            let id = of(other);
            assert_eq!(id.len(), 32, "{other}");
            assert!(is_valid(&id));
        }
        assert_ne!(RequestId::of(&HeaderMap::new()), RequestId::of(&HeaderMap::new()));
    }
}
