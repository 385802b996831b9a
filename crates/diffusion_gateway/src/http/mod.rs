//! The HTTP side: routes, and what all of them share.

mod auth;
mod body;
mod health;
mod metrics;
mod observe;
mod request_id;
mod serve;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::error::{ApiError, Result};
use crate::generation::{Generated, ImageRequest};
use crate::triton::Servers;
use crate::{openai, sdapi};

pub use auth::ApiKey;
pub use metrics::Metrics;
pub use request_id::RequestId;
pub use serve::serve;

/// What all handlers share. Nothing in it outlives a request, except for counters.
pub struct Gateway {
    /// The Tritons.
    pub servers: Servers,
    /// The model of requests that name none.
    pub default_model: Option<String>,
    /// The time limit of a request.
    pub time_limit: Duration,
    /// The largest body.
    pub max_body_bytes: usize,
    /// The key that requests must have.
    pub api_key: Option<ApiKey>,
    /// The origins of browsers that may send requests; `*` is any.
    pub cors_origins: Vec<HeaderValue>,
    /// The counters.
    pub metrics: Metrics,
}

/// The state of the handlers.
pub type Shared = Arc<Gateway>;

impl Gateway {
    /// Returns `model`, or the default: the gateway's, or the only one that there is.
    ///
    /// # Errors
    /// 400 if no model is named and there are several.
    pub async fn model_or_default(&self, model: Option<String>) -> Result<String> {
        if let Some(model) = model.or_else(|| self.default_model.clone()) {
            return Ok(model);
        }
        let mut models = self.models().await?.into_iter();
        match (models.next(), models.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err(ApiError::model_not_found()),
            (Some(_), Some(_)) => Err(ApiError::argument(
                "model",
                "expected a name, because there are several models; GET /v1/models lists them",
            )),
        }
    }

    /// Returns the sorted names of the models that are ready and generate images.
    ///
    /// # Errors
    /// 503 if no Triton answers.
    pub async fn models(&self) -> Result<Vec<String>> {
        let models = self.servers.image_models().await;
        let models = models.ok_or_else(|| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "no Triton answers"))?;
        Ok(models.into_iter().collect())
    }

    /// Runs a request for images.
    ///
    /// # Errors
    /// Those of [`ImageRequest::run`].
    pub async fn generate(&self, request: ImageRequest, id: &RequestId) -> Result<Generated> {
        request.run(&self.servers, id.as_str(), self.time_limit).await
    }
}

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
