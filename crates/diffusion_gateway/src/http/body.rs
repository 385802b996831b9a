//! Bodies of requests: read to the end before a handler runs, within limits of size and time.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_LENGTH;
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use super::Gateway;
use crate::error::{ApiError, Result};

/// How long a client may take to send a body.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// Reads the body of a request. A client that is slow or sends too much gets its error here, and a handler never waits
/// for a client.
///
/// # Errors
/// 413 for a body that is too large, 408 for one that takes too long, 400 for one that breaks off.
pub async fn collect(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Result<Response> {
    let limit = gateway.max_body_bytes;
    let too_large = || {
        let message = format!("the body is too large: the limit is {limit} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    let (head, body) = request.into_parts();
    let announced = head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let announced = announced.and_then(|value| value.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let whole = tokio::time::timeout(TIME_LIMIT, Limited::new(body, limit).collect()).await;
    let whole = whole.map_err(|_| {
        let message = format!("the body did not arrive within {} s", TIME_LIMIT.as_secs());
        ApiError::new(StatusCode::REQUEST_TIMEOUT, message)
    })?;
    let whole = whole.map_err(|error| {
        if error.is::<LengthLimitError>() {
            too_large()
        } else {
            ApiError::new(StatusCode::BAD_REQUEST, "the body broke off")
        }
    })?;
    Ok(next.run(Request::from_parts(head, Body::from(whole.to_bytes()))).await)
}
