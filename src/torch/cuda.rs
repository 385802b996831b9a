//! CUDA, loaded at run time.
//!
//! The backend links only the CPU libraries of libtorch, so one file works on machines with and without a GPU. The
//! first GPU instance opens `libtorch_cuda.so`, whose static initialisers register the CUDA kernels with the dispatcher
//! in the process.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::cuda_libraries;
use super::generator::check_status;
use diffusion_core::{Error, Result};

unsafe extern "C" {
    fn td_cuda_is_linked() -> bool;
    fn td_cuda_set_device(index: c_int) -> *mut c_char;
    fn td_cuda_empty_cache() -> *mut c_char;
    fn td_cuda_memory(index: c_int, free: *mut usize, total: *mut usize) -> *mut c_char;
}

/// The environment variable that names a folder with `libtorch_cuda.so` and what it needs.
pub const LIBRARY_PATH_VARIABLE: &str = "TRITON_DIFFUSION_CUDA_PATH";

const LIBRARY: &str = "libtorch_cuda.so";

/// Loads libtorch's CUDA library and returns the device `index`.
///
/// The library is searched in the folder of [`LIBRARY_PATH_VARIABLE`], in `cuda/` next to this backend's file, next to
/// that file, and in the paths of the system's loader.
///
/// # Errors
/// `Unsupported` if the library or one of its dependencies is missing, or if the device does not exist; the message
/// names the paths.
pub fn device(index: u32) -> Result<tch::Device> {
    load()?;
    let count = tch::Cuda::device_count();
    if i64::from(index) < count {
        return Ok(tch::Device::Cuda(index as usize));
    }
    Err(Error::unsupported(format!(
        "GPU {index} does not exist; CUDA shows {count} devices"
    )))
}

/// Makes the device current on this thread; does nothing for the CPU.
///
/// # Errors
/// Errors of CUDA, as `Internal`.
pub fn make_current(device: tch::Device) -> Result<()> {
    match device {
        tch::Device::Cuda(index) => {
            let index = c_int::try_from(index).map_err(|_| Error::internal("a CUDA device index out of range"))?;
            // SAFETY: passes a number; libtorch checks it and throws into the shim.
            check_status(unsafe { td_cuda_set_device(index) })
        }
        _ => Ok(()),
    }
}

/// Frees libtorch's cache of device memory; does nothing on the CPU, or if CUDA was never loaded.
///
/// # Errors
/// Errors of CUDA, as `Internal`.
pub fn empty_cache(device: tch::Device) -> Result<()> {
    match device {
        // SAFETY: passes no arguments; libtorch's CUDA library is in the process.
        tch::Device::Cuda(_) if is_linked() => check_status(unsafe { td_cuda_empty_cache() }),
        _ => Ok(()),
    }
}

/// Returns the free memory of a device from [`device`] in bytes, without the memory that libtorch caches for loaded
/// models.
///
/// # Errors
/// Errors of CUDA, as `Internal`.
pub fn free_memory(index: usize) -> Result<u64> {
    let index = c_int::try_from(index).map_err(|_| Error::internal("a CUDA device index out of range"))?;
    let (mut free, mut total) = (0usize, 0usize);
    // SAFETY: a number and places for two; libtorch's CUDA library is in the process, since there is a device.
    check_status(unsafe { td_cuda_memory(index, &mut free, &mut total) })?;
    Ok(free as u64)
}

/// Returns whether libtorch's CUDA library is registered in this process.
pub fn is_linked() -> bool {
    // SAFETY: reads an atomic of libtorch's.
    unsafe { td_cuda_is_linked() }
}

fn load() -> Result<()> {
    // One load at a time: the initialisers of the library fill process-wide registries.
    static LOADING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = LOADING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if is_linked() {
        return Ok(());
    }
    let mut tried = Vec::new();
    for candidate in candidates() {
        match cuda_libraries::open_next_to(&candidate).and_then(|()| open(&candidate)) {
            Ok(()) if is_linked() => return Ok(()),
            Ok(()) => tried.push(format!("{}: registers no CUDA device", candidate.display())),
            Err(why) => tried.push(why),
        }
    }
    Err(Error::unsupported(format!(
        "a GPU needs libtorch's CUDA library, which cannot be loaded (set {LIBRARY_PATH_VARIABLE} to its folder): {}",
        tried.join("; ")
    )))
}

fn candidates() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Some(folder) = std::env::var_os(LIBRARY_PATH_VARIABLE) {
        folders.push(PathBuf::from(folder));
    }
    if let Some(own) = own_folder() {
        folders.push(own.join("cuda"));
        folders.push(own);
    }
    let mut candidates: Vec<PathBuf> = folders
        .into_iter()
        .map(|folder| folder.join(LIBRARY))
        .filter(|path| path.exists())
        .collect();
    candidates.push(PathBuf::from(LIBRARY));
    candidates
}

/// Returns the folder of the file with this code.
fn own_folder() -> Option<PathBuf> {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    let here: fn() -> Option<PathBuf> = own_folder;
    // SAFETY: `info` has room for the answer; the address is in this file.
    let found = unsafe { libc::dladdr(here as *const c_void, &mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: on success the loader's own NUL-terminated name of the file, valid while it is mapped.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    let path = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
    path.parent().map(Path::to_path_buf)
}

/// Opens a library and never closes it, since its registrations stay referenced.
pub(super) fn open(path: &Path) -> std::result::Result<(), String> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| "a path with a NUL".to_owned())?;
    // SAFETY: a NUL-terminated path; the initialisers of libtorch's library run once, under LOADING.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
    use super::*;
    use diffusion_core::ErrorKind;

    #[test]
    fn device_without_the_library_names_the_variable() {
        let outcome = device(0);
        if is_linked() {
            return; // Nothing is missing.
        }
        let error = outcome.expect_err("no CUDA here");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(LIBRARY_PATH_VARIABLE), "{error}");
    }

    #[test]
    fn cpu_needs_no_library() {
        make_current(tch::Device::Cpu).unwrap();
        empty_cache(tch::Device::Cpu).unwrap();
    }
}
