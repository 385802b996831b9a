//! Errors, and their conversion from and to `TRITONSERVER_Error`.

use std::borrow::Cow;
use std::fmt;
use std::ptr::NonNull;

use crate::{sys, text};

/// The kind of an [`Error`] (`TRITONSERVER_Error_Code`), which decides the HTTP or gRPC status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// No other code applies, or the server sent an unknown code.
    Unknown,
    /// A bug in the backend or in a library that it uses.
    Internal,
    /// A file, a model or a tensor that does not exist.
    NotFound,
    /// The request or the configuration is invalid; sending it again cannot work.
    InvalidArg,
    /// Not possible now: out of memory, or the instance no longer works.
    Unavailable,
    /// Valid, but not supported.
    Unsupported,
    /// The object exists already.
    AlreadyExists,
    /// The client cancelled the request.
    Cancelled,
}

impl ErrorCode {
    /// All codes.
    pub const ALL: [Self; 8] = [
        Self::Unknown,
        Self::Internal,
        Self::NotFound,
        Self::InvalidArg,
        Self::Unavailable,
        Self::Unsupported,
        Self::AlreadyExists,
        Self::Cancelled,
    ];

    /// Returns Triton's name without its prefix, e.g. `INVALID_ARG`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Internal => "INTERNAL",
            Self::NotFound => "NOT_FOUND",
            Self::InvalidArg => "INVALID_ARG",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unsupported => "UNSUPPORTED",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::Cancelled => "CANCELLED",
        }
    }

    /// Converts Triton's value.
    #[doc(hidden)]
    pub fn from_raw(raw: sys::TRITONSERVER_Error_Code) -> Self {
        match raw {
            sys::TRITONSERVER_ERROR_INTERNAL => Self::Internal,
            sys::TRITONSERVER_ERROR_NOT_FOUND => Self::NotFound,
            sys::TRITONSERVER_ERROR_INVALID_ARG => Self::InvalidArg,
            sys::TRITONSERVER_ERROR_UNAVAILABLE => Self::Unavailable,
            sys::TRITONSERVER_ERROR_UNSUPPORTED => Self::Unsupported,
            sys::TRITONSERVER_ERROR_ALREADY_EXISTS => Self::AlreadyExists,
            sys::TRITONSERVER_ERROR_CANCELLED => Self::Cancelled,
            _ => Self::Unknown,
        }
    }

    /// Returns Triton's value.
    #[doc(hidden)]
    pub fn raw(self) -> sys::TRITONSERVER_Error_Code {
        match self {
            Self::Unknown => sys::TRITONSERVER_ERROR_UNKNOWN,
            Self::Internal => sys::TRITONSERVER_ERROR_INTERNAL,
            Self::NotFound => sys::TRITONSERVER_ERROR_NOT_FOUND,
            Self::InvalidArg => sys::TRITONSERVER_ERROR_INVALID_ARG,
            Self::Unavailable => sys::TRITONSERVER_ERROR_UNAVAILABLE,
            Self::Unsupported => sys::TRITONSERVER_ERROR_UNSUPPORTED,
            Self::AlreadyExists => sys::TRITONSERVER_ERROR_ALREADY_EXISTS,
            Self::Cancelled => sys::TRITONSERVER_ERROR_CANCELLED,
        }
    }
}

/// A failure: the code and the message that the client receives.
///
/// The message names the model, the input and the limit, and never holds the user's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    code: ErrorCode,
    message: String,
    /// Whether memory ran out, which SageMaker's front end reads from the message.
    out_of_memory: bool,
}

/// SageMaker's front end answers 507 to an error whose message contains one of these words, and unloads models then
/// (`SageMakerMMECheckOOMError` in `src/sagemaker_server.cc` of triton-inference-server/server).
const MEMORY_WORDS: [&str; 11] = [
    "CUDA out of memory",
    "CUDA_OUT_OF_MEMORY",
    "Out of memory",
    "Out Of Memory",
    "out of memory",
    "MemoryError",
    "OutOfMemory",
    "OOM",
    "Failed to allocate memory",
    "failed to allocate memory",
    "No space left on device",
];

/// Puts an invisible space into the words in `message` that mean a lack of memory: the name of a model or a file, or the
/// text of a file, may contain them.
fn without_memory_words(message: &str) -> Cow<'_, str> {
    let mut message = Cow::Borrowed(message);
    for word in MEMORY_WORDS {
        if message.contains(word) {
            let (first, rest) = word.split_at(1);
            message = Cow::Owned(message.replace(word, &format!("{first}\u{200b}{rest}")));
        }
    }
    message
}

macro_rules! constructors {
    ($($name:ident => $code:ident,)*) => {
        $(
            #[doc = concat!("Returns an error with [`ErrorCode::", stringify!($code), "`].")]
            pub fn $name(message: impl Into<String>) -> Self {
                Self::new(ErrorCode::$code, message)
            }
        )*
    };
}

impl Error {
    /// Returns an error with the given code.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            out_of_memory: false,
        }
    }

    /// Returns an error for a lack of memory, with [`ErrorCode::Unavailable`]. Only such an error reaches the client with
    /// words that SageMaker's front end takes for a lack of memory.
    pub fn out_of_memory(message: impl Into<String>) -> Self {
        Self {
            out_of_memory: true,
            ..Self::unavailable(message)
        }
    }

    /// Returns whether the error is from [`Error::out_of_memory`].
    pub fn is_out_of_memory(&self) -> bool {
        self.out_of_memory
    }

    constructors! {
        internal => Internal,
        not_found => NotFound,
        invalid_arg => InvalidArg,
        unavailable => Unavailable,
        unsupported => Unsupported,
        already_exists => AlreadyExists,
        cancelled => Cancelled,
    }

    /// Returns the kind of failure.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// Returns the message for the client.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Prepends `place` and a colon to the message, as in `model 'a', input 'prompt': ...`.
    #[must_use]
    pub fn context(self, place: impl fmt::Display) -> Self {
        Self {
            message: format!("{place}: {}", self.message),
            ..self
        }
    }

    /// Creates a `TRITONSERVER_Error`, which the receiver must delete (`TRITONSERVER_ErrorNew`).
    pub(crate) fn into_raw(self) -> *mut sys::TRITONSERVER_Error {
        let message = if self.out_of_memory {
            Cow::Borrowed(self.message.as_str())
        } else {
            without_memory_words(&self.message)
        };
        let message = text::to_c(&message);
        // SAFETY: the message is a C string and is copied.
        unsafe { sys::TRITONSERVER_ErrorNew(self.code.raw(), message.as_ptr()) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// An owned `TRITONSERVER_Error`, for functions that borrow one.
pub(crate) struct OwnedError(*mut sys::TRITONSERVER_Error);

impl OwnedError {
    pub(crate) fn new(error: &Error) -> Self {
        Self(error.clone().into_raw())
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::TRITONSERVER_Error {
        self.0
    }
}

impl Drop for OwnedError {
    fn drop(&mut self) {
        // SAFETY: made by ErrorNew, owned by `self` and deleted here only.
        unsafe { sys::TRITONSERVER_ErrorDelete(self.0) }
    }
}

/// Converts the result of a call into Triton and deletes Triton's error.
///
/// # Safety
///
/// `raw` was just returned by a `TRITONSERVER_*` or `TRITONBACKEND_*` function.
pub(crate) unsafe fn check(raw: *mut sys::TRITONSERVER_Error) -> Result<(), Error> {
    if raw.is_null() {
        return Ok(());
    }
    let owned = OwnedError(raw);
    // SAFETY: the error lives until `owned` is dropped; code and message are copied before.
    let (code, message) = unsafe {
        (
            sys::TRITONSERVER_ErrorCode(raw),
            text::from_c(sys::TRITONSERVER_ErrorMessage(raw))
                .unwrap_or_default()
                .into_owned(),
        )
    };
    drop(owned);
    Err(Error::new(ErrorCode::from_raw(code), message))
}

/// Checks a pointer from the server; a null pointer is a bug of the server.
pub(crate) fn non_null<T>(pointer: *mut T, what: &str) -> Result<NonNull<T>, Error> {
    NonNull::new(pointer).ok_or_else(|| Error::internal(format!("Triton passed a null pointer for the {what}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the message that Triton gets.
    fn sent(error: Error) -> String {
        // SAFETY: the error is new.
        let received = unsafe { check(error.into_raw()) };
        received.err().map(|error| error.message).unwrap_or_default()
    }

    #[test]
    fn only_a_lack_of_memory_has_the_words_for_it() {
        for word in MEMORY_WORDS {
            let message = format!("model '{word}.tar.gz': /{word}/a: {word}{word}");
            let unlike = sent(Error::invalid_arg(message.as_str()).context("a"));
            assert!(!MEMORY_WORDS.iter().any(|word| unlike.contains(word)), "{unlike}");
            assert_eq!(unlike.replace('\u{200b}', ""), format!("a: {message}"));
            assert_eq!(
                sent(Error::out_of_memory(message.as_str()).context("a")),
                format!("a: {message}")
            );
        }
        assert_eq!(sent(Error::internal("model 'b': memory")), "model 'b': memory");
    }
}
