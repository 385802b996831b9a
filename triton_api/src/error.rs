//! Errors, and their conversion from and to `TRITONSERVER_Error`.

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
        }
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
            code: self.code,
            message: format!("{place}: {}", self.message),
        }
    }

    /// Creates a `TRITONSERVER_Error`, which the receiver must delete (`TRITONSERVER_ErrorNew`).
    pub(crate) fn into_raw(self) -> *mut sys::TRITONSERVER_Error {
        let message = text::to_c(&self.message);
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
