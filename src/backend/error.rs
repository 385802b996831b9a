//! Converts errors to Triton's.

use triton_api::ErrorCode;

use diffusion_core::{Error, ErrorKind};

/// Converts an error to Triton's. The message starts with the model's name.
pub fn to_triton(model: &str, error: &Error) -> triton_api::Error {
    let message = format!("model '{model}': {error}");
    if matches!(error, Error::OutOfMemory(_)) {
        return triton_api::Error::out_of_memory(message);
    }
    let code = match error.kind() {
        ErrorKind::InvalidArgument => ErrorCode::InvalidArg,
        ErrorKind::Unsupported => ErrorCode::Unsupported,
        ErrorKind::NotFound => ErrorCode::NotFound,
        ErrorKind::Unavailable => ErrorCode::Unavailable,
        ErrorKind::Cancelled => ErrorCode::Cancelled,
        ErrorKind::Internal => ErrorCode::Internal,
    };
    triton_api::Error::new(code, message)
}
