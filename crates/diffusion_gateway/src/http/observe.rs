//! What is known of each request: its id, its counters, and a line in the log if it failed.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::Frame;

use super::Shared;
use super::events::Outcome;
use super::metrics::InFlight;
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
    match response.extensions().get::<Outcome>().cloned() {
        None => in_flight.answered(response.status().as_u16()),
        // A stream is served until it ends.
        Some(outcome) => {
            return response.map(|body| {
                Body::new(Counted {
                    body,
                    in_flight: Some(in_flight),
                    outcome,
                })
            });
        }
    }
    response
}

/// The body of a stream, which is counted when it ends.
struct Counted {
    body: Body,
    in_flight: Option<InFlight>,
    outcome: Outcome,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none()
            && let Some(in_flight) = self.in_flight.take()
        {
            in_flight.answered(self.outcome.status());
        }
        Poll::Ready(frame)
    }
}

/// Writes a line to standard error for a failure of a server. Errors of a client are its own.
pub async fn log_failures(request: Request, next: Next) -> Response {
    let id = request.extensions().get::<RequestId>().cloned();
    let route = route(&request);
    let response = next.run(request).await;
    if let (Some(id), Some(error)) = (id, response.extensions().get::<ApiError>()) {
        log_failure(&route, id.as_str(), error);
    }
    response
}

/// Writes a line to standard error if a server failed.
pub fn log_failure(route: &str, id: &str, error: &ApiError) {
    if error.status >= 500 {
        eprintln!("{route} {id} {}: {}", error.status, error.message.escape_debug());
    }
}

/// Returns the path of the route. Paths of requests are not counted: there is no end of them.
fn route(request: &Request) -> String {
    let matched = request.extensions().get::<MatchedPath>();
    matched.map_or("none", MatchedPath::as_str).to_owned()
}
