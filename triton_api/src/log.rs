//! Triton's log.
//!
//! The macros [`log_info!`](crate::log_info), [`log_warn!`](crate::log_warn),
//! [`log_error!`](crate::log_error) and [`log_verbose!`](crate::log_verbose) add the file and
//! the line. They format nothing if the level is disabled.

use std::ffi::c_int;

use crate::error::check;
use crate::{sys, text};

/// The level of a log line (`TRITONSERVER_LogLevel`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Information for operators.
    Info,
    /// A problem that the backend works around.
    Warn,
    /// A failure.
    Error,
    /// Details for debugging; disabled by default.
    Verbose,
}

impl Level {
    fn raw(self) -> sys::TRITONSERVER_LogLevel {
        match self {
            Self::Info => sys::TRITONSERVER_LOG_INFO,
            Self::Warn => sys::TRITONSERVER_LOG_WARN,
            Self::Error => sys::TRITONSERVER_LOG_ERROR,
            Self::Verbose => sys::TRITONSERVER_LOG_VERBOSE,
        }
    }
}

/// Returns whether lines of this level are written (`TRITONSERVER_LogIsEnabled`).
pub fn is_enabled(level: Level) -> bool {
    // SAFETY: takes a value and has no preconditions.
    unsafe { sys::TRITONSERVER_LogIsEnabled(level.raw()) }
}

/// Writes one line (`TRITONSERVER_LogMessage`). A failure to log is ignored.
pub fn write(level: Level, file: &str, line: u32, message: &str) {
    let file = text::to_c(file);
    let message = text::to_c(message);
    let line = c_int::try_from(line).unwrap_or(0);
    // SAFETY: both are C strings that outlive the call; `check` deletes the error.
    let _ = unsafe {
        check(sys::TRITONSERVER_LogMessage(
            level.raw(),
            file.as_ptr(),
            line,
            message.as_ptr(),
        ))
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __log {
    ($level:ident, $($message:tt)+) => {
        if $crate::log::is_enabled($crate::log::Level::$level) {
            $crate::log::write(
                $crate::log::Level::$level,
                ::core::file!(),
                ::core::line!(),
                &::std::format!($($message)+),
            );
        }
    };
}

/// Logs at level INFO; the arguments are those of `format!`.
#[macro_export]
macro_rules! log_info { ($($message:tt)+) => { $crate::__log!(Info, $($message)+) }; }

/// Logs at level WARNING; the arguments are those of `format!`.
#[macro_export]
macro_rules! log_warn { ($($message:tt)+) => { $crate::__log!(Warn, $($message)+) }; }

/// Logs at level ERROR; the arguments are those of `format!`.
#[macro_export]
macro_rules! log_error { ($($message:tt)+) => { $crate::__log!(Error, $($message)+) }; }

/// Logs at level VERBOSE; the arguments are those of `format!`.
#[macro_export]
macro_rules! log_verbose { ($($message:tt)+) => { $crate::__log!(Verbose, $($message)+) }; }
