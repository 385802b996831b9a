//! The C functions, grouped by the object that they work on.
//!
//! No function calls the backend, so the record of handles can be locked for the whole call.

mod backend;
mod metrics;
mod request;
mod response;
mod server;

pub(crate) use backend::*;
pub(crate) use metrics::*;
pub(crate) use request::*;
pub(crate) use response::*;
pub(crate) use server::*;

use std::ffi::{CStr, c_char};

use triton_api::sys::TRITONSERVER_Error;

use crate::state::{CHANGED, ErrorObject, Failure, State, lock, text_to_c};

type RawError = *mut TRITONSERVER_Error;

/// Runs one call with the record of handles locked, and returns a failure as an error object.
fn call(f: impl FnOnce(&mut State) -> Result<(), Failure>) -> RawError {
    let mut state = lock();
    let result = f(&mut state);
    let raw = match result {
        Ok(()) => std::ptr::null_mut(),
        Err(failure) => state.insert_raw(ErrorObject {
            code: failure.code,
            message: text_to_c(&failure.message),
        }),
    };
    drop(state);
    CHANGED.notify_all();
    raw
}

/// Writes a result unless `out` is null.
///
/// # Safety
///
/// `out` is null or valid for a write.
unsafe fn put<T>(out: *mut T, value: T) {
    if !out.is_null() {
        // SAFETY: not null, and the caller guarantees the rest.
        unsafe { out.write(value) }
    }
}

/// Copies a C string; null becomes an empty string.
///
/// # Safety
///
/// `text` is null or a C string.
unsafe fn copy(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and the caller guarantees the rest.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
