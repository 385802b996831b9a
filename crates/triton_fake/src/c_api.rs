//! The definitions of the C functions, by the object that they work on.
//!
//! None of them calls the backend, so that the accounts can be locked for the whole call.

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

/// Runs one call with the accounts locked and hands a failure out as an error object.
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

/// Writes a result, unless the caller does not want it.
///
/// # Safety
///
/// `out` is null or good to write to.
unsafe fn put<T>(out: *mut T, value: T) {
    if !out.is_null() {
        // SAFETY: not null, and the caller vouches for the rest.
        unsafe { out.write(value) }
    }
}

/// A copy of a C string; null is empty.
///
/// # Safety
///
/// `text` is null or a C string.
unsafe fn copy(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and the caller vouches for the rest.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
