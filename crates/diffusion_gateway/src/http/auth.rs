//! The API key.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use base64::prelude::{BASE64_STANDARD, Engine as _};

use super::Gateway;
use crate::error::{ApiError, Result};

/// A key that requests must have. Only its hash is kept.
#[derive(Clone)]
pub struct ApiKey(blake3::Hash);

impl ApiKey {
    /// Makes the key.
    pub fn new(key: &str) -> Self {
        Self(blake3::hash(key.as_bytes()))
    }

    /// Checks the header `authorization`: `Bearer KEY` of OpenAI's clients, or `Basic` with the key as the password, of
    /// stable-diffusion-webui's.
    ///
    /// The comparison of hashes takes the same time for all keys, of any length.
    pub fn is_in(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some((scheme, value)) = given.and_then(|given| given.split_once(' ')) else {
            return false;
        };
        if scheme.eq_ignore_ascii_case("bearer") {
            return blake3::hash(value.trim().as_bytes()) == self.0;
        }
        if scheme.eq_ignore_ascii_case("basic") {
            let pair = BASE64_STANDARD.decode(value.trim()).unwrap_or_default();
            let colon = pair.iter().position(|byte| *byte == b':');
            let password = colon.and_then(|colon| pair.get(colon + 1..));
            return password.is_some_and(|password| blake3::hash(password) == self.0);
        }
        false
    }
}

/// Refuses a request without the key, if there is one.
///
/// # Errors
/// 401.
pub async fn check(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Result<Response> {
    if gateway
        .api_key
        .as_ref()
        .is_some_and(|key| !key.is_in(request.headers()))
    {
        return Err(ApiError {
            code: Some("invalid_api_key"),
            ..ApiError::new(
                StatusCode::UNAUTHORIZED,
                "expected the API key of this gateway in the header authorization",
            )
        });
    }
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn accepts(value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().unwrap());
        ApiKey::new("key:1").is_in(&headers)
    }

    #[test]
    fn key_is_a_token_or_a_password() {
        assert!(accepts("Bearer key:1"));
        assert!(accepts("bearer key:1"));
        let basic = |pair: &str| format!("Basic {}", BASE64_STANDARD.encode(pair));
        assert!(accepts(&basic("anyone:key:1")));
        for wrong in [
            "key:1",
            "Bearer",
            "Bearer ",
            "Bearer key:",
            "Bearer key:12",
            "Token key:1",
            "Basic key:1",
            "Basic !",
            &basic("key:1"),
            &basic("anyone:key"),
        ] {
            assert!(!accepts(wrong), "{wrong}");
        }
        assert!(!ApiKey::new("key:1").is_in(&HeaderMap::new()));
    }
}
