//! The errors of a request to a server.

use serde::Deserialize;

/// The result of `invoke`.
pub type Result<T, E = InvokeError> = std::result::Result<T, E>;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum InvokeError {
    /// An error of a file or of the arguments.
    #[error(transparent)]
    Local(#[from] diffusion_core::Error),
    /// The server cannot be reached.
    #[error("{url}")]
    Unreachable {
        /// The address of the request.
        url: String,
        /// The cause.
        #[source]
        source: Box<ureq::Error>,
    },
    /// The server returned an error.
    #[error("HTTP {status}: {message}")]
    Refused {
        /// The status code.
        status: u16,
        /// The server's message.
        message: String,
    },
    /// The model does not have this input.
    #[error("the model has no input `{given}`, expected one of {expected}")]
    Input {
        /// The unknown input.
        given: &'static str,
        /// The inputs of the model.
        expected: String,
    },
    /// The response is not a response of Triton.
    #[error("invalid response: {0}")]
    Response(String),
}

impl InvokeError {
    /// Makes the error of a response with a status other than 200: `{"error": "..."}` from Triton, or any text from a
    /// proxy.
    pub fn refused(status: u16, answer: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Failure {
            error: String,
        }
        let message = match serde_json::from_slice::<Failure>(answer) {
            Ok(failure) => failure.error,
            Err(_) => String::from_utf8_lossy(answer).chars().take(500).collect(),
        };
        Self::Refused { status, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_has_the_status_and_the_message_of_the_server() {
        let error = InvokeError::refused(400, br#"{"error":"gen_args: no"}"#);
        assert_eq!(error.to_string(), "HTTP 400: gen_args: no");
        let error = InvokeError::refused(502, b"<html>bad gateway");
        assert_eq!(error.to_string(), "HTTP 502: <html>bad gateway");
    }
}
