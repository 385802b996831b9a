//! The routes, and the layers around them.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::error::ApiError;
use crate::http::{Shared, auth, body, health, observe, request_id};
use crate::{openai, page, sdapi};

/// Makes the routes.
pub fn router(gateway: Shared) -> Router {
    // The last layer is the outermost: the key is checked before a body is read.
    let api = openai::routes()
        .merge(sdapi::routes())
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(gateway.clone(), body::collect))
        .layer(from_fn_with_state(gateway.clone(), auth::check));
    let router = Router::new()
        .route("/healthz", get(health::health))
        .route("/metrics", get(health::metrics))
        .merge(api)
        .merge(if gateway.page { page::routes() } else { Router::new() })
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "no such route"))
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "the route has no such method")
        })
        .layer(from_fn(observe::log_failures));
    let router = match cors(&gateway.cors_origins) {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router
        .layer(from_fn_with_state(gateway.clone(), observe::count))
        .with_state(gateway)
}

fn cors(origins: &[HeaderValue]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.to_vec())
    };
    let cors = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([AUTHORIZATION, CONTENT_TYPE, request_id::HEADER])
        .expose_headers([request_id::HEADER]);
    Some(cors)
}

#[cfg(test)]
mod tests;
