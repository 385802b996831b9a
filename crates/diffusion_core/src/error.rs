//! The one error type of this crate.
//!
//! An error is a cause, which decides the Triton code that the client sees, and a sentence that names the model, the
//! input and the limit. The sentence never holds text that a user sent: SageMaker's front end searches error texts for
//! words such as "out of memory" and answers 507 when it finds one, so a quoted prompt could make an endpoint unload
//! healthy models.

/// What this crate returns wherever something can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something failed. Cloneable, because one failed UNet call fails every job that shared it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A request, a model configuration or a checkpoint holds a value that is not allowed.
    #[error("{0}")]
    InvalidArgument(String),
    /// What was asked for is well formed, but this backend or this pipeline does not do it.
    #[error("{0}")]
    Unsupported(String),
    /// A file, a folder or a tensor that is needed is not there.
    #[error("{0}")]
    NotFound(String),
    /// The model instance cannot work now: it is unloading, full, or was poisoned by an earlier failure.
    #[error("{0}")]
    Unavailable(String),
    /// Memory of the host or the device ran out. Its text always contains the words "out of memory", which SageMaker
    /// turns into HTTP 507; it then unloads models that are not in use and tries again.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// The client gave the request up.
    #[error("{0}")]
    Cancelled(String),
    /// A failure of libtorch, CUDA or of this backend itself.
    #[error("{0}")]
    Internal(String),
}

/// The class of an [`Error`], one for each Triton error code that this backend answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// `TRITONSERVER_ERROR_INVALID_ARG`
    InvalidArgument,
    /// `TRITONSERVER_ERROR_UNSUPPORTED`
    Unsupported,
    /// `TRITONSERVER_ERROR_NOT_FOUND`
    NotFound,
    /// `TRITONSERVER_ERROR_UNAVAILABLE`, also the code for memory that ran out
    Unavailable,
    /// `TRITONSERVER_ERROR_CANCELLED`
    Cancelled,
    /// `TRITONSERVER_ERROR_INTERNAL`
    Internal,
}

impl Error {
    /// An [`Error::InvalidArgument`].
    pub fn invalid_argument(message: impl Into<String>) -> Self {
        Self::InvalidArgument(message.into())
    }

    /// An [`Error::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::Unsupported(message.into())
    }

    /// An [`Error::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::NotFound(message.into())
    }

    /// An [`Error::Unavailable`].
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::Unavailable(message.into())
    }

    /// An [`Error::OutOfMemory`]; the words "out of memory" are added to the text that is given.
    pub fn out_of_memory(message: impl Into<String>) -> Self {
        Self::OutOfMemory(message.into())
    }

    /// An [`Error::Cancelled`].
    pub fn cancelled(message: impl Into<String>) -> Self {
        Self::Cancelled(message.into())
    }

    /// An [`Error::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::Internal(message.into())
    }

    /// The Triton error code that stands for this cause.
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

    /// Puts `prefix: ` before the text, to say which model, file or input it is about. The cause stays.
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

/// [`Error::context`] for a whole `Result`.
pub trait Context<T> {
    /// Puts what `prefix` returns before the text of the error, if there is one.
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
    fn each_cause_has_its_code() {
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
    fn only_memory_errors_speak_of_memory() {
        let error = Error::out_of_memory("UNet call of 16 rows").context("model `sd_base`");
        assert_eq!(
            error.to_string(),
            "out of memory: model `sd_base`: UNet call of 16 rows"
        );
        assert!(!Error::unavailable("full").to_string().contains("memory"));
    }

    #[test]
    fn context_of_a_result() {
        let failed: Result<()> = Err(Error::not_found("unet/config.json"));
        let failed = Context::context(failed, || "checkpoint");
        assert_eq!(failed, Err(Error::not_found("checkpoint: unet/config.json")));
        assert_eq!(Context::context(Ok(3), || "checkpoint"), Ok(3));
    }
}
