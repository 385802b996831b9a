//! `POST /v1/images/generations`.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Extension, State};
use serde_json::Value;

use super::arguments::Arguments;
use super::response::response;
use crate::error::Result;
use crate::fields::Fields;
use crate::http::{RequestId, Shared};

/// Text to image.
///
/// # Errors
/// The arguments are wrong, and those of the backend.
pub async fn generations(
    State(gateway): State<Shared>,
    Extension(id): Extension<RequestId>,
    body: Bytes,
) -> Result<Json<Value>> {
    let mut arguments = Arguments::take(Fields::of_json(&body)?)?;
    arguments.request.set("width", arguments.size.map(|size| size.width));
    arguments.request.set("height", arguments.size.map(|size| size.height));
    response(&gateway, arguments, &id).await
}
