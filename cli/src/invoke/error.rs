//! Why a request to a server failed.

use serde::Deserialize;

/// What `invoke` returns.
pub type Result<T, E = InvokeError> = std::result::Result<T, E>;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum InvokeError {
    /// Something on this side: a file, the arguments.
    #[error(transparent)]
    Local(#[from] diffusion_core::Error),
    /// No answer came.
    #[error("{url}")]
    Unreachable {
        /// Where the request went.
        url: String,
        /// Why.
        #[source]
        source: Box<ureq::Error>,
    },
    /// The server answered an error.
    #[error("HTTP {status}: {message}")]
    Refused {
        /// The status code.
        status: u16,
        /// The server's words.
        message: String,
    },
    /// The model takes other inputs.
    #[error("the model takes no input `{given}`; it takes {taken}")]
    Input {
        /// What is not taken.
        given: &'static str,
        /// What is.
        taken: String,
    },
    /// What came is not what Triton answers.
    #[error("the answer is not one of Triton's: {0}")]
    Answer(String),
}

impl InvokeError {
    /// The error of an answer with a status other than 200: `{"error": "..."}` from Triton, and anything from what may be in
    /// between.
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
    fn the_servers_words_and_its_status_are_told() {
        let error = InvokeError::refused(400, br#"{"error":"gen_args: no"}"#);
        assert_eq!(error.to_string(), "HTTP 400: gen_args: no");
        let error = InvokeError::refused(502, b"<html>bad gateway");
        assert_eq!(error.to_string(), "HTTP 502: <html>bad gateway");
    }
}
