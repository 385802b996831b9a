//! `POST /v1/images/generations`.

use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::response::Response;

use super::arguments::Arguments;
use super::response::respond;
use super::stream::Route;
use crate::error::Result;
use crate::fields::Fields;
use crate::http::{RequestId, Shared};

const ROUTE: Route = Route {
    path: "/v1/images/generations",
    events: "image_generation",
};

/// Text to image.
///
/// # Errors
/// The arguments are wrong, and those of the backend.
pub async fn generations(
    State(gateway): State<Shared>,
    Extension(id): Extension<RequestId>,
    body: Bytes,
) -> Result<Response> {
    let mut arguments = Arguments::take(Fields::of_json(&body)?)?;
    drop(body);
    arguments.request.set("width", arguments.size.map(|size| size.width));
    arguments.request.set("height", arguments.size.map(|size| size.height));
    respond(&gateway, arguments, ROUTE, &id).await
}
