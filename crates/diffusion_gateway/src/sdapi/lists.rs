//! The lists that a client shows.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::description::Description;
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

/// `GET /sdapi/v1/loras`: those that the models name in their descriptions. A LoRA is there once.
///
/// # Errors
/// 503 if no Triton answers.
pub async fn loras(State(gateway): State<Shared>) -> Result<Json<Value>> {
    let mut names = BTreeSet::new();
    for model in gateway.models().await? {
        // A model that has gone since has none.
        if let Ok(model) = gateway.find(Some(model)).await
            && let Some(description) = Description::of(&model).await
        {
            names.extend(description.loras().into_iter().map(str::to_owned));
        }
    }
    let lora = |name: &String| json!({ "name": name, "alias": name, "path": name, "metadata": {} });
    Ok(Json(names.iter().map(lora).collect()))
}

/// Lists of what there is not, such as upscalers.
pub async fn nothing() -> Json<Value> {
    Json(json!([]))
}
