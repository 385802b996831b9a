//! The response of generations and edits.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use serde_json::{Value, json};

use super::arguments::Arguments;
use crate::error::Result;
use crate::http::{Gateway, RequestId};

/// Runs a request and makes OpenAI's response. `seed` and `parameters`, what the backend tells, are not OpenAI's.
///
/// # Errors
/// Those of the backend.
pub async fn response(gateway: &Gateway, arguments: Arguments, id: &RequestId) -> Result<Json<Value>> {
    let Arguments { model, mut request, .. } = arguments;
    request.model = gateway.model_or_default(model).await?;
    let output_format = Arguments::output_format(&request.gen_args);
    let generated = gateway.generate(request, id).await?;
    let created = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let data: Vec<_> = generated
        .images
        .iter()
        .map(|image| json!({ "b64_json": image }))
        .collect();
    Ok(Json(json!({
        "created": created,
        "data": data,
        "output_format": output_format,
        "seed": generated.seed(),
        "parameters": generated.parameters,
    })))
}
