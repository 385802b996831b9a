//! The error type of all crates.
//!
//! An error is a cause, which decides the Triton code, and a sentence that names the model, the input and the limit.
//! The sentence never contains text of a user: SageMaker's front end searches error texts for words such as "out of
//! memory" and answers 507 if it finds one, so a quoted prompt could make an endpoint unload healthy models.

/// The result of an operation that can fail with [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed. Cloneable, because one failed UNet call fails all its jobs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value of a request, a model configuration or a checkpoint is not allowed.
    #[error("{0}")]
    InvalidArgument(String),
    /// The input is well formed, but this backend or this pipeline does not support it.
    #[error("{0}")]
    Unsupported(String),
    /// A required file, folder or tensor is missing.
    #[error("{0}")]
    NotFound(String),
    /// The model instance cannot work now: it is unloading, full, or was poisoned by an earlier failure.
    #[error("{0}")]
    Unavailable(String),
    /// Memory of the host or the device ran out. The text always contains "out of memory", which SageMaker turns into
    /// HTTP 507; SageMaker then unloads idle models and tries again.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// The client cancelled the request.
    #[error("{0}")]
    Cancelled(String),
    /// A failure of libtorch, CUDA or of this backend itself.
    #[error("{0}")]
    Internal(String),
}

/// The Triton error code of an [`enum@Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// `TRITONSERVER_ERROR_INVALID_ARG`
    InvalidArgument,
    /// `TRITONSERVER_ERROR_UNSUPPORTED`
    Unsupported,
    /// `TRITONSERVER_ERROR_NOT_FOUND`
    NotFound,
    /// `TRITONSERVER_ERROR_UNAVAILABLE`, also for memory that ran out
    Unavailable,
    /// `TRITONSERVER_ERROR_CANCELLED`
    Cancelled,
    /// `TRITONSERVER_ERROR_INTERNAL`
    Internal,
}

impl Error {
    /// Makes an [`Error::InvalidArgument`].
    pub fn invalid_argument(message: impl Into<String>) -> Self {
        Self::InvalidArgument(message.into())
    }

    /// Makes an [`Error::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::Unsupported(message.into())
    }

    /// Makes an [`Error::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::NotFound(message.into())
    }

    /// Makes an [`Error::Unavailable`].
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::Unavailable(message.into())
    }

    /// Makes an [`Error::OutOfMemory`]; "out of memory" is added to the text.
    pub fn out_of_memory(message: impl Into<String>) -> Self {
        Self::OutOfMemory(message.into())
    }

    /// Makes an [`Error::Cancelled`].
    pub fn cancelled(message: impl Into<String>) -> Self {
        Self::Cancelled(message.into())
    }

    /// Makes an [`Error::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::Internal(message.into())
    }

    /// Returns the Triton error code of this cause.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidArgument(_) => ErrorKind::InvalidArgument,
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Unavailable(_) | Self::OutOfMemory(_) => ErrorKind::Unavailable,
            Self::Cancelled(_) => ErrorKind::Cancelled,
            Self::Internal(_) => ErrorKind::Internal,
        }
    }

    /// Adds `prefix: ` before the text, such as the model, the file or the input. The cause stays.
    #[must_use]
    pub fn context(mut self, prefix: impl std::fmt::Display) -> Self {
        let (Self::InvalidArgument(message)
        | Self::Unsupported(message)
        | Self::NotFound(message)
        | Self::Unavailable(message)
        | Self::OutOfMemory(message)
        | Self::Cancelled(message)
        | Self::Internal(message)) = &mut self;
        *message = format!("{prefix}: {message}");
        self
    }
}

/// [`Error::context`] for a `Result`.
pub trait Context<T> {
    /// Adds the text that `prefix` returns before the text of an error.
    ///
    /// # Errors
    /// The error of `self`, with the longer text.
    fn context<P: std::fmt::Display>(self, prefix: impl FnOnce() -> P) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context<P: std::fmt::Display>(self, prefix: impl FnOnce() -> P) -> Result<T> {
        self.map_err(|error| error.context(prefix()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_of_each_cause_has_its_code() {
        let cases = [
            (Error::invalid_argument("m"), ErrorKind::InvalidArgument),
            (Error::unsupported("m"), ErrorKind::Unsupported),
            (Error::not_found("m"), ErrorKind::NotFound),
            (Error::unavailable("m"), ErrorKind::Unavailable),
            (Error::out_of_memory("m"), ErrorKind::Unavailable),
            (Error::cancelled("m"), ErrorKind::Cancelled),
            (Error::internal("m"), ErrorKind::Internal),
        ];
        for (error, kind) in cases {
            assert_eq!(error.kind(), kind, "{error:?}");
            let longer = error.clone().context("model `sd_base`");
            assert_eq!(longer.kind(), kind);
            assert!(longer.to_string().ends_with("model `sd_base`: m"), "{longer}");
        }
    }

    #[test]
    fn error_text_names_memory_only_if_memory_ran_out() {
        let error = Error::out_of_memory("UNet call of batch size 16").context("model `sd_base`");
        assert_eq!(
            error.to_string(),
            "out of memory: model `sd_base`: UNet call of batch size 16"
        );
        assert!(!Error::unavailable("full").to_string().contains("memory"));
    }

    #[test]
    fn context_of_a_result_is_added_to_the_error() {
        let failed: Result<()> = Err(Error::not_found("unet/config.json"));
        let failed = Context::context(failed, || "checkpoint");
        assert_eq!(failed, Err(Error::not_found("checkpoint: unet/config.json")));
        assert_eq!(Context::context(Ok(3), || "checkpoint"), Ok(3));
    }
}
