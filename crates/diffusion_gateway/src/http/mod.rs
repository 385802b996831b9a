//! What all routes share.

pub mod auth;
pub mod body;
pub mod health;
mod metrics;
pub mod observe;
pub mod request_id;
mod serve;

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode};

use crate::error::{ApiError, Result};
use crate::generation::{Generated, ImageRequest};
use crate::triton::Servers;

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
    /// Whether the page is served at `/`.
    pub page: bool,
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
