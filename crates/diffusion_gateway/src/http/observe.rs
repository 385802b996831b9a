//! What is known of each request: its id, its counters, and a line in the log if it failed.

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;

use super::Shared;
use super::request_id::{HEADER, RequestId};
use crate::error::ApiError;

/// Gives a request its id and counts it.
pub async fn count(State(gateway): State<Shared>, mut request: Request, next: Next) -> Response {
    let id = RequestId::of(request.headers());
    request.extensions_mut().insert(id.clone());
    // Dropped with this future if the client closes the connection.
    let in_flight = gateway.metrics.begin(route(&request));
    let mut response = next.run(request).await;
    if let Some(id) = id.header() {
        response.headers_mut().insert(HEADER, id);
    }
    in_flight.answered(response.status().as_u16());
    response
}

/// Writes a line to standard error for a failure of a server. Errors of a client are its own.
pub async fn log_failures(request: Request, next: Next) -> Response {
    let id = request.extensions().get::<RequestId>().cloned();
    let route = route(&request);
    let response = next.run(request).await;
    if let (Some(id), Some(error)) = (id, response.extensions().get::<ApiError>())
        && error.status >= 500
    {
        eprintln!(
            "{route} {} {}: {}",
            id.as_str(),
            error.status,
            error.message.escape_debug()
        );
    }
    response
}

/// Returns the path of the route. Paths of requests are not counted: there is no end of them.
fn route(request: &Request) -> String {
    let matched = request.extensions().get::<MatchedPath>();
    matched.map_or("none", MatchedPath::as_str).to_owned()
}
