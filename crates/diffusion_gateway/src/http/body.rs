//! Bodies of requests: read to the end before a handler runs, within limits of size, time and memory.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_LENGTH;
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt as _;

use super::Gateway;
use super::body_budget::{BodyBudget, Reserved};
use crate::error::{ApiError, Result};

/// How long a client may take to send a body.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// Reads the body of a request. A client that is slow or sends too much gets its error here, and a handler never waits
/// for a client.
///
/// # Errors
/// 413 for a body that is too large, 408 for one that takes too long, 400 for one that breaks off, 503 if all bodies
/// together are too large.
pub async fn collect(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Result<Response> {
    let limit = gateway.max_body_bytes;
    let (head, body) = request.into_parts();
    let announced = head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let announced = announced.and_then(|value| value.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large(limit));
    }
    // Held until the response begins: so long the handler may need the body.
    let reserved = gateway.bodies.reserve(announced.unwrap_or(0));
    let mut reserved = reserved.ok_or_else(|| full(&gateway.bodies))?;
    let whole = tokio::time::timeout(TIME_LIMIT, async {
        match announced {
            Some(length) => read(body, limit, length, |_| Ok(())).await,
            None => read(body, limit, 0, |bytes| grow(&mut reserved, &gateway.bodies, bytes)).await,
        }
    });
    let whole = whole.await.map_err(|_| {
        let message = format!("the body did not arrive within {} s", TIME_LIMIT.as_secs());
        ApiError::new(StatusCode::REQUEST_TIMEOUT, message)
    })??;
    Ok(next.run(Request::from_parts(head, Body::from(whole))).await)
}

/// Reads a body of about `expected` bytes. `reserve` is called before bytes are kept.
async fn read(
    mut body: Body,
    limit: usize,
    expected: usize,
    mut reserve: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<u8>> {
    let mut whole = Vec::with_capacity(expected);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "the body broke off"))?;
        // Trailers have no use here.
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if data.len() > limit.saturating_sub(whole.len()) {
            return Err(too_large(limit));
        }
        reserve(data.len())?;
        whole.extend_from_slice(&data);
    }
    Ok(whole)
}

fn grow(reserved: &mut Reserved, budget: &BodyBudget, bytes: usize) -> Result<()> {
    if reserved.grow(bytes) {
        Ok(())
    } else {
        Err(full(budget))
    }
}

fn too_large(limit: usize) -> ApiError {
    let message = format!("the body is too large: the limit is {limit} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}

fn full(budget: &BodyBudget) -> ApiError {
    let message = format!(
        "the bodies of all requests together are limited to {} bytes, and this one does not fit now",
        budget.limit()
    );
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
}
