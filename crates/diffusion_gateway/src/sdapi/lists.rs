//! The lists that a client shows.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::error::Result;
use crate::http::Shared;
use crate::samplers::SAMPLERS;

/// `GET /sdapi/v1/samplers`.
pub async fn samplers() -> Json<Value> {
    let sampler = |(name, class): (&str, &str)| json!({ "name": name, "aliases": [class], "options": {} });
    Json(SAMPLERS.map(sampler).into_iter().collect())
}

/// `GET /sdapi/v1/schedulers`: how the noise levels are spaced, which is the checkpoint's own way always.
pub async fn schedulers() -> Json<Value> {
    Json(json!([{
        "name": "automatic",
        "label": "Automatic",
        "aliases": null,
        "default_rho": -1,
        "need_inner_model": false,
    }]))
}

/// `GET /sdapi/v1/sd-models`: the models that are ready and generate images.
///
/// # Errors
/// 503 if no Triton answers.
pub async fn models(State(gateway): State<Shared>) -> Result<Json<Value>> {
    let model = |name: &String| {
        json!({
            "title": name,
            "model_name": name,
            "filename": name,
            "hash": null,
            "sha256": null,
            "config": null,
        })
    };
    Ok(Json(gateway.models().await?.iter().map(model).collect()))
}

/// Lists of what Triton does not tell, such as the LoRAs of a model, or what there is not, such as upscalers.
pub async fn nothing() -> Json<Value> {
    Json(json!([]))
}
