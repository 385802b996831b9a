//! The part of stable-diffusion-webui's API that SillyTavern and Open WebUI use: `/sdapi/v1`.
//!
//! Source: <https://github.com/AUTOMATIC1111/stable-diffusion-webui>, `modules/api/api.py` and `modules/api/models.py`,
//! version 1.10.

mod arguments;
mod generate;
mod lists;
mod options;
mod progress;
mod prompt_loras;

use axum::Router;
use axum::routing::{get, post};

use crate::http::Shared;

/// Returns the routes.
pub fn routes() -> Router<Shared> {
    Router::new()
        .route("/sdapi/v1/txt2img", post(generate::txt2img))
        .route("/sdapi/v1/img2img", post(generate::img2img))
        .route("/sdapi/v1/samplers", get(lists::samplers))
        .route("/sdapi/v1/schedulers", get(lists::schedulers))
        .route("/sdapi/v1/sd-models", get(lists::models))
        .route("/sdapi/v1/loras", get(lists::loras))
        .route("/sdapi/v1/sd-vae", get(lists::nothing))
        .route("/sdapi/v1/upscalers", get(lists::nothing))
        .route("/sdapi/v1/options", get(options::get).post(options::set))
        .route("/sdapi/v1/progress", get(progress::progress))
        .route("/sdapi/v1/interrupt", post(progress::interrupt))
}
