//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::description::Description;
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

/// One model, with what it tells about itself.
///
/// # Errors
/// 404 if it is not ready, or generates no images; 503 if no Triton answers.
pub async fn one(State(gateway): State<Shared>, Path(id): Path<String>) -> Result<Json<Value>> {
    if !gateway.models().await?.contains(&id) {
        return Err(ApiError::model_not_found());
    }
    let ready = gateway.find(Some(id)).await?;
    let mut model = model(&ready.name);
    let description = Description::of(&ready).await;
    model["diffusion"] = description.map_or(Value::Null, Description::into_value);
    Ok(Json(model))
}

/// Triton does not tell when a model was made.
fn model(name: &str) -> Value {
    json!({ "id": name, "object": "model", "created": 0, "owned_by": "triton" })
}
