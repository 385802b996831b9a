//! OpenAI's image API: `/v1/images/generations`, `/v1/images/edits` and `/v1/models`.
//!
//! Source: <https://platform.openai.com/docs/api-reference/images>. The fields that OpenAI does not have are those of
//! diffusers, as vLLM-Omni and OpenVINO Model Server accept them too.

mod arguments;
mod edits;
mod form;
mod generations;
mod models;
mod response;
mod stream;

use axum::Router;
use axum::routing::{get, post};

use crate::http::Shared;

/// Returns the routes.
pub fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/images/generations", post(generations::generations))
        .route("/v1/images/edits", post(edits::edits))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{id}", get(models::one))
}
