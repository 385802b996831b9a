//! The boundary that no panic crosses.
//!
//! A panic that left an `extern "C"` function would abort the server. Each entry point runs
//! inside [`catch`], and what it reports says where it happened but not what: the payload of a
//! panic can hold a piece of the user's text, so it goes to the log alone.

use std::any::Any;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Error;
use crate::{log, log_error, sys};

/// Whether the hook has logged the payload by the time that [`catch`] sees it.
static HOOKED: AtomicBool = AtomicBool::new(false);

/// Runs `f` and turns a panic into an INTERNAL error that names `place` and nothing else.
///
/// The caller must be sure that what `f` was changing is not used half changed afterwards, and
/// normally poisons it ([`crate::Health::poison`]).
///
/// # Errors
///
/// Only if `f` panicked.
pub fn catch<T>(place: &str, f: impl FnOnce() -> T) -> Result<T, Error> {
    panic::catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        if !HOOKED.load(Ordering::Relaxed) {
            log_error!("{place} panicked: {}", describe(payload.as_ref()));
        }
        dispose(payload);
        Error::internal(format!("{place} panicked; the server's log says where"))
    })
}

/// The outermost ring of an entry point: the error or panic of `f` as Triton wants it.
pub(crate) fn boundary(place: &str, f: impl FnOnce() -> Result<(), Error>) -> *mut sys::TRITONSERVER_Error {
    match catch(place, f) {
        Ok(Ok(())) => std::ptr::null_mut(),
        Ok(Err(error)) | Err(error) => error.into_raw(),
    }
}

/// Sends every panic of this library's threads to Triton's log, with its thread and place, and
/// nothing to standard error. Further calls do nothing.
///
/// The standard library is linked into the backend, so that the hook is the backend's alone.
pub fn install_hook() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        panic::set_hook(Box::new(|info| {
            let (file, line) = info
                .location()
                .map_or(("unknown", 0), |place| (place.file(), place.line()));
            let thread = std::thread::current();
            let text = format!(
                "thread '{}' panicked: {}",
                thread.name().unwrap_or("unnamed"),
                describe(info.payload())
            );
            log::write(log::Level::Error, file, line, &text);
        }));
        HOOKED.store(true, Ordering::Relaxed);
    });
}

fn describe(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "a payload that is not text"
    }
}

/// Drops a payload that is text and forgets any other, whose destructor might panic again.
fn dispose(payload: Box<dyn Any + Send>) {
    if payload.is::<&'static str>() || payload.is::<String>() {
        drop(payload);
    } else {
        mem::forget(payload);
    }
}

#[cfg(test)]
#[expect(clippy::panic, reason = "panics are what is tested")]
mod tests {
    use super::*;
    use crate::ErrorCode;

    #[test]
    fn the_error_names_the_place_and_not_the_payload() {
        let error = catch("step", || panic!("secret {}", 7)).err();
        let error = error.unwrap_or_else(|| Error::cancelled(""));
        assert_eq!(error.code(), ErrorCode::Internal);
        assert_eq!(error.message(), "step panicked; the server's log says where");
    }

    #[test]
    fn a_payload_that_panics_when_dropped_is_harmless() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        assert!(catch("step", || panic::panic_any(Bomb)).is_err());
        assert_eq!(catch("step", || 3), Ok(3));
    }
}
