//! Options, progress and interruption. The gateway keeps no state, so there is little to tell.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
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

/// `GET /sdapi/v1/progress`: always 0, because the backend does not report it yet.
pub async fn progress() -> Json<Value> {
    Json(json!({
        "progress": 0.0,
        "eta_relative": 0.0,
        "state": { "skipped": false, "interrupted": false, "job_count": 0, "sampling_step": 0, "sampling_steps": 0 },
        "current_image": null,
        "textinfo": "progress is not supported",
    }))
}

/// `POST /sdapi/v1/interrupt`.
///
/// # Errors
/// 501: it would end the requests of all clients.
pub async fn interrupt() -> ApiError {
    ApiError::new(
        StatusCode::NOT_IMPLEMENTED,
        "interrupt is not supported; a client that closes its connection cancels its own request",
    )
}
