//! Catches panics at the C boundary.
//!
//! A panic that leaves an `extern "C"` function aborts the server, so each entry point runs inside
//! [`catch`]. The returned error names the entry point only. The payload of a panic can contain a
//! user's text, so the payload is logged and never returned.

use std::any::Any;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Error;
use crate::{log, log_error, sys};

/// Whether the panic hook is installed and logs payloads, so [`catch`] need not.
static HOOKED: AtomicBool = AtomicBool::new(false);

/// Runs `f` and turns a panic into an INTERNAL error that names `place` and nothing else.
///
/// After a panic, values that `f` was changing may be in an invalid state. The caller must not use
/// them again, and normally poisons the instance ([`crate::Health::poison`]).
///
/// # Errors
///
/// INTERNAL if `f` panics.
pub fn catch<T>(place: &str, f: impl FnOnce() -> T) -> Result<T, Error> {
    panic::catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        if !HOOKED.load(Ordering::Relaxed) {
            log_error!("panic in {place}: {}", describe(payload.as_ref()));
        }
        dispose(payload);
        Error::internal(format!("panic in {place}; see the server log"))
    })
}

/// Runs the body of an entry point and returns its error or panic as Triton's error; null without one.
pub(crate) fn boundary(place: &str, f: impl FnOnce() -> Result<(), Error>) -> *mut sys::TRITONSERVER_Error {
    match catch(place, f) {
        Ok(Ok(())) => std::ptr::null_mut(),
        Ok(Err(error)) | Err(error) => error.into_raw(),
    }
}

/// Logs every panic of this library's threads to Triton's log, with the thread and the location, and
/// nothing to standard error. Further calls do nothing.
///
/// The hook affects this backend only, because each backend links its own copy of the standard library.
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

/// Drops a payload that is text. Forgets any other payload, because its destructor may panic.
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
    fn catch_error_names_the_place_and_not_the_payload() {
        let error = catch("step", || panic!("secret {}", 7)).err();
        let error = error.unwrap_or_else(|| Error::cancelled(""));
        assert_eq!(error.code(), ErrorCode::Internal);
        assert_eq!(error.message(), "panic in step; see the server log");
    }

    #[test]
    fn catch_payload_that_panics_on_drop_is_forgotten() {
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
