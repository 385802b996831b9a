//! Errors as clients see them: OpenAI's JSON with an HTTP status.

use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::triton::NoModel;

/// The result of a handler.
pub type Result<T, E = ApiError> = std::result::Result<T, E>;

/// An error of a request. The message never repeats what the client sent.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: u16,
    /// What was expected and what was got.
    pub message: String,
    /// The argument that the error is about.
    pub param: Option<&'static str>,
    /// A word for programs.
    pub code: Option<&'static str>,
}

/// A client that closed the connection, as nginx numbers it. Such a response reaches nobody but the metrics.
pub const CLIENT_CLOSED_REQUEST: u16 = 499;
/// Seconds after which a client may try again.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

impl ApiError {
    /// Makes an error without an argument and a code.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status: status.as_u16(),
            message: message.into(),
            param: None,
            code: None,
        }
    }

    /// Makes an error about the argument `param`, with its name in front of the message.
    pub fn argument(param: &'static str, message: impl std::fmt::Display) -> Self {
        Self {
            param: Some(param),
            ..Self::new(StatusCode::BAD_REQUEST, format!("{param}: {message}"))
        }
    }

    /// Makes an error of a model that is not ready, or not there.
    pub fn model_not_found() -> Self {
        Self {
            param: Some("model"),
            code: Some("model_not_found"),
            ..Self::new(
                StatusCode::NOT_FOUND,
                "model: no server has a model of this name that is ready; GET /v1/models lists those that are",
            )
        }
    }

    /// Makes the error of a request for which there is no server.
    pub fn no_model(reason: &NoModel) -> Self {
        match reason {
            NoModel::NotReady => Self::model_not_found(),
            NoModel::Unreachable => Self::new(StatusCode::SERVICE_UNAVAILABLE, "no Triton with this model answers"),
        }
    }

    /// Makes an error of a failed thread or another fault of the gateway.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// Makes the error of a gRPC status, with the words of Triton and of its backend.
    pub fn of_triton(status: &Status) -> Self {
        let http = match status.code() {
            Code::InvalidArgument => 400,
            Code::NotFound => 404,
            Code::Unavailable => 503,
            Code::DeadlineExceeded => 504,
            Code::Cancelled => CLIENT_CLOSED_REQUEST,
            Code::ResourceExhausted => 429,
            Code::Unimplemented => 501,
            _ => 500,
        };
        Self {
            status: http,
            message: status.message().to_owned(),
            param: None,
            code: None,
        }
    }

    /// Returns OpenAI's name for the kind of error.
    fn kind(&self) -> &'static str {
        match self.status {
            401 => "authentication_error",
            429 => "rate_limit_error",
            400..500 => "invalid_request_error",
            _ => "server_error",
        }
    }
}

impl ApiError {
    /// Returns OpenAI's JSON object.
    pub fn to_json(&self) -> Value {
        json!({ "error": {
            "message": self.message,
            "type": self.kind(),
            "param": self.param,
            "code": self.code,
        } })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = self.to_json();
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        if matches!(self.status, 429 | 503) {
            headers.insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
        }
        if self.status == 401 {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // For the log.
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn grpc_codes_become_http_statuses() {
        for (code, status, kind) in [
            (Code::InvalidArgument, 400, "invalid_request_error"),
            (Code::NotFound, 404, "invalid_request_error"),
            (Code::Unavailable, 503, "server_error"),
            (Code::DeadlineExceeded, 504, "server_error"),
            (Code::Cancelled, 499, "invalid_request_error"),
            (Code::ResourceExhausted, 429, "rate_limit_error"),
            (Code::Unimplemented, 501, "server_error"),
            (Code::Internal, 500, "server_error"),
            (Code::Unknown, 500, "server_error"),
        ] {
            let error = ApiError::of_triton(&Status::new(code, "gen_args: no"));
            assert_eq!((error.status, error.kind()), (status, kind), "{code:?}");
            assert_eq!(error.message, "gen_args: no");
            assert_eq!(error.into_response().status().as_u16(), status);
        }
    }

    #[tokio::test]
    async fn body_has_openais_form() {
        let response = ApiError::argument("size", "expected auto or WIDTHxHEIGHT").into_response();
        assert_eq!(response.status(), 400);
        let body = axum::body::to_bytes(response.into_body(), 1000).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let expected = json!({ "error": { "message": "size: expected auto or WIDTHxHEIGHT",
            "type": "invalid_request_error", "param": "size", "code": null } });
        assert_eq!(body, expected);
    }

    #[test]
    fn a_busy_server_says_when_to_try_again() {
        let response = ApiError::of_triton(&Status::unavailable("full")).into_response();
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        let response = ApiError::of_triton(&Status::internal("")).into_response();
        assert!(!response.headers().contains_key(RETRY_AFTER));
    }
}
