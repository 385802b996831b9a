//! The system's loader of libraries.

use std::ffi::{CStr, CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Opens a library and never closes it, since its registrations stay referenced. Its symbols stay out of the global scope,
/// where they would replace those of other versions in backends that the server loads later.
pub(super) fn open(path: &Path) -> std::result::Result<(), String> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| "a path with a NUL".to_owned())?;
    // SAFETY: a NUL-terminated path; the initialisers of libtorch's library run once, since the callers hold a lock.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if !handle.is_null() {
        return Ok(());
    }
    // SAFETY: dlerror gives this thread's last message or null; it is read before any other call.
    let message = unsafe { libc::dlerror() };
    if message.is_null() {
        return Err(format!("{}: cannot be opened", path.display()));
    }
    // SAFETY: not null, NUL-terminated, valid until this thread's next dl call.
    Err(unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned())
}

/// Returns a function of CUDA's runtime, which libtorch_cpu.so links; `None` if the runtime has none of that name.
///
/// # Safety
/// `F` is the type of a pointer to that function.
pub(super) unsafe fn runtime_function<F: Copy>(name: &CStr) -> Option<F> {
    const RUNTIME: &CStr = c"libcudart.so.13";
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: NUL-terminated names. The library stays open after this handle is closed: libtorch links it.
    let symbol = unsafe {
        let handle = libc::dlopen(RUNTIME.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD);
        if handle.is_null() {
            return None;
        }
        let symbol = libc::dlsym(handle, name.as_ptr());
        libc::dlclose(handle);
        symbol
    };
    // SAFETY: the caller vouches for the type; a function pointer has the size of a data pointer here.
    (!symbol.is_null()).then(|| unsafe { std::mem::transmute_copy(&symbol) })
}
