//! CUDA, found at run time.
//!
//! The library links libtorch's CPU half alone, so that one file serves machines with and without
//! a GPU. When an instance asks for a GPU, `libtorch_cuda.so` is opened; its static initialisers
//! register the CUDA kernels with the dispatcher that is already in the process.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::generator::take;
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

/// The device `index`, once libtorch's CUDA library is in the process and sees that device.
///
/// The library is looked for in the folder of [`LIBRARY_PATH_VARIABLE`], beside this backend's own
/// file, in `cuda/` beside it, and then where the system's loader looks.
///
/// # Errors
/// `Unsupported` if the library or a library that it needs is not found, or if the driver shows no
/// such device; the message names what was tried.
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

/// Makes the device current on this thread; nothing for the CPU.
///
/// # Errors
/// CUDA's own, as `Internal`.
pub fn make_current(device: tch::Device) -> Result<()> {
    match device {
        tch::Device::Cuda(index) => {
            let index = c_int::try_from(index).map_err(|_| Error::internal("a CUDA device index out of range"))?;
            // SAFETY: takes a number; libtorch checks it and throws into the shim.
            take(unsafe { td_cuda_set_device(index) })
        }
        _ => Ok(()),
    }
}

/// Frees libtorch's cache of device memory; does nothing on the CPU, or if CUDA was never loaded.
///
/// # Errors
/// CUDA's own, as `Internal`.
pub fn empty_cache(device: tch::Device) -> Result<()> {
    match device {
        // SAFETY: takes nothing; libtorch's CUDA library is in the process.
        tch::Device::Cuda(_) if is_linked() => take(unsafe { td_cuda_empty_cache() }),
        _ => Ok(()),
    }
}

/// Free memory of a device that [`device`] has given, in bytes. What libtorch keeps for the next request of a loaded model is not among
/// it, and stays theirs.
///
/// # Errors
/// CUDA's own, as `Internal`.
pub fn free_memory(index: usize) -> Result<u64> {
    let index = c_int::try_from(index).map_err(|_| Error::internal("a CUDA device index out of range"))?;
    let (mut free, mut total) = (0usize, 0usize);
    // SAFETY: a number and places for two; libtorch's CUDA library is in the process, since there is a device.
    take(unsafe { td_cuda_memory(index, &mut free, &mut total) })?;
    Ok(free as u64)
}

/// True if libtorch's CUDA library has registered itself in this process.
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
        match open(&candidate) {
            Ok(()) if is_linked() => return Ok(()),
            Ok(()) => tried.push(format!("{}: registers no CUDA device", candidate.display())),
            Err(why) => tried.push(why),
        }
    }
    Err(Error::unsupported(format!(
        "a GPU was asked for, but libtorch's CUDA library cannot be loaded (set {LIBRARY_PATH_VARIABLE} to its folder): {}",
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

/// The folder of the file that this code was loaded from.
fn own_folder() -> Option<PathBuf> {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    let here: fn() -> Option<PathBuf> = own_folder;
    // SAFETY: `info` is a place for the answer; the address is one of this very file.
    let found = unsafe { libc::dladdr(here as *const c_void, &mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: on success the loader's own NUL-terminated name of the file, valid while it is mapped.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    let path = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
    path.parent().map(Path::to_path_buf)
}

/// Opens a library for good: what it registers stays referenced.
fn open(path: &Path) -> std::result::Result<(), String> {
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
    fn a_machine_without_the_library_says_what_it_tried() {
        let outcome = device(0);
        if is_linked() {
            return; // Nothing is missing.
        }
        let error = outcome.expect_err("no CUDA here");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(LIBRARY_PATH_VARIABLE), "{error}");
    }

    #[test]
    fn the_cpu_needs_nothing() {
        make_current(tch::Device::Cpu).unwrap();
        empty_cache(tch::Device::Cpu).unwrap();
    }
}
