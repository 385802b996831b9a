//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::error::{ApiError, Result};
use crate::http::Shared;

/// The models that are ready and generate images.
///
/// # Errors
/// 503 if no Triton answers.
pub async fn list(State(gateway): State<Shared>) -> Result<Json<Value>> {
    let models: Vec<_> = gateway.models().await?.iter().map(|name| model(name)).collect();
    Ok(Json(json!({ "object": "list", "data": models })))
}

/// One model.
///
/// # Errors
/// 404 if it is not ready; 503 if no Triton answers.
pub async fn one(State(gateway): State<Shared>, Path(id): Path<String>) -> Result<Json<Value>> {
    let models = gateway.models().await?;
    let found = models.iter().find(|name| **name == id);
    found
        .map(|name| Json(model(name)))
        .ok_or_else(ApiError::model_not_found)
}

/// Triton does not tell when a model was made.
fn model(name: &str) -> Value {
    json!({ "id": name, "object": "model", "created": 0, "owned_by": "triton" })
}
