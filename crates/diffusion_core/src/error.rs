//! The error type of all crates.
//!
//! The variant decides the Triton error code. The message names the model, the input and the limit. A message never
//! contains text from a request: SageMaker's front end searches error messages for words such as "out of memory" and
//! answers 507 if it finds one. A quoted prompt could thus make an endpoint unload healthy models.

/// A result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The cause of a failure, with a message. Cloneable, because a failed UNet call fails every job in its batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A request, a model configuration or a checkpoint contains a value that is not allowed.
    #[error("{0}")]
    InvalidArgument(String),
    /// A well-formed value asks for something that this backend or this pipeline does not support.
    #[error("{0}")]
    Unsupported(String),
    /// A required file, folder or tensor is missing.
    #[error("{0}")]
    NotFound(String),
    /// The model instance cannot serve the request now: it is unloading, full, or stopped after a failure.
    #[error("{0}")]
    Unavailable(String),
    /// The host or the device ran out of memory. The text always contains the words "out of memory". SageMaker turns
    /// them into HTTP 507, unloads models that are not in use and tries again.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// The device failed and cannot be used again in this process.
    #[error("{0}")]
    DeviceLost(String),
    /// The client cancelled the request.
    #[error("{0}")]
    Cancelled(String),
    /// The request took longer than the client or the model allows.
    #[error("{0}")]
    DeadlineExceeded(String),
    /// A failure of libtorch, of CUDA or of this backend.
    #[error("{0}")]
    Internal(String),
}

/// The class of an [`Error`]: one for each Triton error code that this backend returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// `TRITONSERVER_ERROR_INVALID_ARG`
    InvalidArgument,
    /// `TRITONSERVER_ERROR_UNSUPPORTED`
    Unsupported,
    /// `TRITONSERVER_ERROR_NOT_FOUND`
    NotFound,
    /// `TRITONSERVER_ERROR_UNAVAILABLE`, also for [`Error::OutOfMemory`], [`Error::DeviceLost`] and
    /// [`Error::DeadlineExceeded`]
    Unavailable,
    /// `TRITONSERVER_ERROR_CANCELLED`
    Cancelled,
    /// `TRITONSERVER_ERROR_INTERNAL`
    Internal,
}

impl Error {
    /// Creates an [`Error::InvalidArgument`].
    pub fn invalid_argument(message: impl Into<String>) -> Self {
        Self::InvalidArgument(message.into())
    }

    /// Creates an [`Error::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::Unsupported(message.into())
    }

    /// Creates an [`Error::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::NotFound(message.into())
    }

    /// Creates an [`Error::Unavailable`].
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::Unavailable(message.into())
    }

    /// Creates an [`Error::OutOfMemory`]. The text starts with the words "out of memory".
    pub fn out_of_memory(message: impl Into<String>) -> Self {
        Self::OutOfMemory(message.into())
    }

    /// Creates an [`Error::DeviceLost`].
    pub fn device_lost(message: impl Into<String>) -> Self {
        Self::DeviceLost(message.into())
    }

    /// Creates an [`Error::Cancelled`].
    pub fn cancelled(message: impl Into<String>) -> Self {
        Self::Cancelled(message.into())
    }

    /// Creates an [`Error::DeadlineExceeded`].
    pub fn deadline_exceeded(message: impl Into<String>) -> Self {
        Self::DeadlineExceeded(message.into())
    }

    /// Creates an [`Error::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::Internal(message.into())
    }

    /// Returns the class, which has a Triton error code.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidArgument(_) => ErrorKind::InvalidArgument,
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Unavailable(_) | Self::OutOfMemory(_) | Self::DeviceLost(_) | Self::DeadlineExceeded(_) => {
                ErrorKind::Unavailable
            }
            Self::Cancelled(_) => ErrorKind::Cancelled,
            Self::Internal(_) => ErrorKind::Internal,
        }
    }

    /// Prepends `prefix: ` to the message: the model, file or input that the error is about.
    #[must_use]
    pub fn context(mut self, prefix: impl std::fmt::Display) -> Self {
        let (Self::InvalidArgument(message)
        | Self::Unsupported(message)
        | Self::NotFound(message)
        | Self::Unavailable(message)
        | Self::OutOfMemory(message)
        | Self::DeviceLost(message)
        | Self::Cancelled(message)
        | Self::DeadlineExceeded(message)
        | Self::Internal(message)) = &mut self;
        *message = format!("{prefix}: {message}");
        self
    }
}

/// [`Error::context`] for a whole `Result`.
pub trait Context<T> {
    /// Prepends `prefix() + ": "` to the message of an error.
    ///
    /// # Errors
    /// The error of `self`, with the prefix.
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
    fn error_kind_matches_variant_with_and_without_context() {
        let cases = [
            (Error::invalid_argument("m"), ErrorKind::InvalidArgument),
            (Error::unsupported("m"), ErrorKind::Unsupported),
            (Error::not_found("m"), ErrorKind::NotFound),
            (Error::unavailable("m"), ErrorKind::Unavailable),
            (Error::out_of_memory("m"), ErrorKind::Unavailable),
            (Error::device_lost("m"), ErrorKind::Unavailable),
            (Error::cancelled("m"), ErrorKind::Cancelled),
            (Error::deadline_exceeded("m"), ErrorKind::Unavailable),
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
    fn out_of_memory_only_names_memory() {
        let error = Error::out_of_memory("UNet call, batch size 16").context("model `sd_base`");
        assert_eq!(
            error.to_string(),
            "out of memory: model `sd_base`: UNet call, batch size 16"
        );
        assert!(!Error::unavailable("full").to_string().contains("memory"));
    }

    #[test]
    fn result_context_prepends_to_errors_only() {
        let failed: Result<()> = Err(Error::not_found("unet/config.json"));
        let failed = Context::context(failed, || "checkpoint");
        assert_eq!(failed, Err(Error::not_found("checkpoint: unet/config.json")));
        assert_eq!(Context::context(Ok(3), || "checkpoint"), Ok(3));
    }
}
