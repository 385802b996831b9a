//! What an operator asks.

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::Shared;
use crate::error::{ApiError, Result};

/// `GET /healthz`: 200 if a Triton is ready.
///
/// # Errors
/// 503.
pub async fn health(State(gateway): State<Shared>) -> Result<&'static str> {
    if gateway.servers.is_any_ready().await {
        return Ok("ready\n");
    }
    Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "no Triton is ready"))
}

/// `GET /metrics`: the counters.
pub async fn metrics(State(gateway): State<Shared>) -> impl IntoResponse {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(CONTENT_TYPE, kind)], gateway.metrics.text(gateway.bodies.used()))
}
