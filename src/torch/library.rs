//! libtorch's CUDA library: where it is, and how it is opened.

use std::ffi::{CStr, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::cuda_libraries;
use super::dlopen::open;
use diffusion_core::{Error, Result};

unsafe extern "C" {
    fn td_cuda_is_linked() -> bool;
    fn td_libtorch_address() -> *const c_void;
}

/// The environment variable that names a folder with `libtorch_cuda.so` and what it needs.
pub const LIBRARY_PATH_VARIABLE: &str = "TRITON_DIFFUSION_CUDA_PATH";

const LIBRARY: &str = "libtorch_cuda.so";
/// CUDA's driver, which comes with the driver of the GPU and not with CUDA.
const DRIVER: &str = "libcuda.so.1";

/// Returns whether libtorch's CUDA library is registered in this process.
pub fn is_linked() -> bool {
    // SAFETY: reads an atomic of libtorch's.
    unsafe { td_cuda_is_linked() }
}

/// Returns whether this process should open CUDA before a model asks for it: the variable names a folder, or there is a
/// driver and a library for it.
pub(super) fn is_expected() -> bool {
    std::env::var_os(LIBRARY_PATH_VARIABLE).is_some()
        || (!found_libraries().is_empty() && open(DRIVER.as_ref()).is_ok())
}

/// Opens libtorch's CUDA library. Its static initialisers register CUDA in the process.
///
/// # Errors
/// `Unsupported` with the paths that were tried.
pub(super) fn load() -> Result<()> {
    // One load at a time: the initialisers of the library fill process-wide registries.
    static LOADING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = LOADING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if is_linked() {
        return Ok(());
    }
    let mut tried = Vec::new();
    for candidate in found_libraries().into_iter().chain([PathBuf::from(LIBRARY)]) {
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

/// Returns the paths of the library that exist: in the folder of the variable, then in `cuda/` next to libtorch, where
/// `make backend CUDA=1` puts it, then next to libtorch.
fn found_libraries() -> Vec<PathBuf> {
    let variable = std::env::var_os(LIBRARY_PATH_VARIABLE).map(PathBuf::from);
    let libtorch = libtorch_folder();
    let next_to_it = libtorch.as_ref().map(|folder| folder.join("cuda"));
    [variable, next_to_it, libtorch]
        .into_iter()
        .flatten()
        .map(|folder| folder.join(LIBRARY))
        .filter(|path| path.exists())
        .collect()
}

/// Returns the folder of `libtorch_cpu.so`. The folder of the own file will not do: the command is in another folder than
/// libtorch, and the loader does not know the folder of a program that was found through `PATH`.
fn libtorch_folder() -> Option<PathBuf> {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // SAFETY: `info` has room for the answer; the address is in a mapped file.
    let found = unsafe { libc::dladdr(td_libtorch_address(), &mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: on success the loader's own NUL-terminated name of the file, valid while it is mapped.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    let path = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
    path.parent().map(Path::to_path_buf)
}
