//! Options. The gateway keeps none, so there is little to tell.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use serde_json::{Value, json};

use crate::error::{ApiError, Result};
use crate::fields::Fields;
use crate::http::Shared;

/// `GET /sdapi/v1/options`: the model of requests that name none.
///
/// # Errors
/// 503 if no Triton answers.
pub async fn get(State(gateway): State<Shared>) -> Result<Json<Value>> {
    let model = match gateway.model_or_default(None).await {
        Ok(model) => Value::String(model),
        // Several models, or none.
        Err(error) if error.status < 500 => Value::Null,
        Err(error) => return Err(error),
    };
    Ok(Json(json!({ "sd_model_checkpoint": model, "samples_format": "png" })))
}

/// `POST /sdapi/v1/options`: succeeds if the options are what they are anyway.
///
/// # Errors
/// 400 for another model: the choice would hold for all clients, and for this gateway alone.
pub async fn set(State(gateway): State<Shared>, body: Bytes) -> Result<Json<Value>> {
    let mut fields = Fields::of_json(&body)?;
    let Some(wanted) = fields.text("sd_model_checkpoint")? else {
        return Ok(Json(Value::Null));
    };
    let is_default = gateway.model_or_default(None).await.is_ok_and(|model| model == wanted);
    if is_default {
        return Ok(Json(Value::Null));
    }
    Err(ApiError::argument(
        "sd_model_checkpoint",
        "the gateway keeps no options; name the model in override_settings of each request, or start the gateway with \
         --model",
    ))
}
