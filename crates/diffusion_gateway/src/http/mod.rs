//! What all routes share.

pub mod auth;
pub mod body;
mod body_budget;
pub mod client;
pub mod events;
pub mod health;
mod metrics;
pub mod observe;
pub mod request_id;
mod serve;
mod write_limit;

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode};

use crate::error::{ApiError, Result};
use crate::generation::Generation;
use crate::image_request::ImageRequest;
use crate::running::RunningJobs;
use crate::triton::{NoModel, ReadyModel, Servers};

pub use auth::ApiKey;
pub use body_budget::BodyBudget;
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
    /// The memory for all bodies.
    pub bodies: Arc<BodyBudget>,
    /// The key that requests must have.
    pub api_key: Option<ApiKey>,
    /// The origins of browsers that may send requests; `*` is any.
    pub cors_origins: Vec<HeaderValue>,
    /// Whether the page is served at `/`.
    pub page: bool,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// The requests under `/sdapi` that run.
    pub running: Arc<RunningJobs>,
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

    /// Finds a server on which `model` is ready, or the default model.
    ///
    /// # Errors
    /// Those of [`Gateway::model_or_default`]; 404 if the model is not ready; 503 if no Triton with it answers.
    pub async fn find(&self, model: Option<String>) -> Result<ReadyModel> {
        let model = self.model_or_default(model).await?;
        self.servers
            .find(&model)
            .await
            .map_err(|reason| ApiError::no_model(&reason))
    }

    /// Finds the model of `NAME` or `NAME:LORA`. Returns it and the LoRA's name. A model whose name has the colon comes
    /// first.
    ///
    /// # Errors
    /// Those of [`Gateway::find`].
    pub async fn find_with_lora(&self, model: Option<String>) -> Result<(ReadyModel, Option<String>)> {
        let name = self.model_or_default(model).await?;
        let found = match (self.servers.find(&name).await, name.rsplit_once(':')) {
            (Err(NoModel::NotReady), Some((model, lora))) => {
                let found = self.servers.find(model).await;
                found.map(|found| (found, Some(lora.to_owned())))
            }
            (found, _) => found.map(|found| (found, None)),
        };
        found.map_err(|reason| ApiError::no_model(&reason))
    }

    /// Makes a request for images to a model.
    pub fn generation(&self, model: ReadyModel, request: ImageRequest, id: &RequestId) -> Generation {
        Generation::new(model, request, id.as_str(), self.time_limit)
    }
}
