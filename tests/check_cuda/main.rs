//! Checks the GPU path against libtorch's real CUDA library. Neither a driver nor a GPU is needed.
//!
//! `make check-cuda` makes `dist/backends/diffusion` with CUDA=1, compiles `helper.cpp` and the pretend GPU, and runs
//! these tests, which are ignored otherwise. A process can open CUDA once, so each test starts itself again in its own
//! process. That process uses the libtorch of `dist/backends/diffusion`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod architectures;
mod libraries;
mod operators;
mod shim_functions;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use diffusion_core::ErrorKind;
use triton_diffusion::torch::cuda;

/// Set in the processes that a test starts. Its value says what the process shall do.
const ROLE: &str = "TRITON_DIFFUSION_CHECK_CUDA";

/// Returns a path in the repository.
fn repository(path: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).canonicalize().unwrap();
    root.join(path)
}

/// Returns the folder that tritonserver loads the backend from.
fn backend_folder() -> PathBuf {
    repository("dist/backends/diffusion")
}

/// Returns the folder with libtorch's CUDA libraries.
fn cuda_folder() -> PathBuf {
    backend_folder().join("cuda")
}

/// Returns what this process shall do; `None` in the process that runs the tests.
fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// Runs the test `name` in its own process, in which [`role`] returns `role`. `change` may change the command.
/// Prints what the process prints, and fails if the process fails.
fn run_in_own_process(name: &str, role: &str, change: impl FnOnce(&mut Command)) {
    let folder = cuda_folder();
    assert!(
        folder.join("libtorch_cuda.so").exists(),
        "{} has no libtorch_cuda.so: run `make check-cuda`",
        folder.display()
    );
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env(ROLE, role)
        // It precedes the path in the program, which is DT_RUNPATH (ld.so(8)).
        .env("LD_LIBRARY_PATH", backend_folder());
    change(&mut command);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{name}, {role}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    print!("{text}");
}

/// Runs `check` in its own process; `name` is the name of the calling test.
fn check_in_own_process(name: &str, check: fn()) {
    match role() {
        Some(_) => check(),
        None => run_in_own_process(name, "check", |_| ()),
    }
}

/// Opens CUDA as the backend does, and returns whether there is a device.
fn open_cuda() -> bool {
    assert!(!cuda::is_linked());
    let device = cuda::device(0);
    if let Err(error) = &device {
        println!("without a device: {error}");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
    assert!(
        cuda::is_linked(),
        "libtorch's CUDA library is not registered: {device:?}"
    );
    device.is_ok()
}

/// Asserts that every file in memory that has the name of a shipped library is the shipped library.
fn assert_shipped_files_are_used() {
    let shipped = |folder: &Path, path: &Path| folder.join(path.file_name().unwrap()).exists();
    let (backend, cuda) = (backend_folder(), cuda_folder());
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let files: std::collections::BTreeSet<_> = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]))
        .collect();
    let mut used = 0;
    for file in files.into_iter().map(Path::new) {
        if shipped(&backend, file) || shipped(&cuda, file) {
            assert!(file.starts_with(&backend), "{} is not a shipped file", file.display());
            used += 1;
        }
    }
    println!("{used} shipped libraries are in memory");
    assert!(used > 10, "{maps}");
}

/// Opens a library by a path, or by a name that the loader searches.
///
/// # Errors
/// The loader's message.
fn open_library(path: &Path, flags: c_int) -> Result<*mut c_void, String> {
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a NUL-terminated name; the libraries that the tests name may be initialized at any time.
    let handle = unsafe { libc::dlopen(name.as_ptr(), flags) };
    if !handle.is_null() {
        return Ok(handle);
    }
    // SAFETY: dlerror returns this thread's last message or null; it is read before any other call.
    let message = unsafe { libc::dlerror() };
    if message.is_null() {
        return Err(format!("{} is not in memory", path.display())); // RTLD_NOLOAD has no message.
    }
    Err(text(message))
}

/// Returns the address of a symbol.
fn symbol(library: *mut c_void, name: &CStr) -> *mut c_void {
    // SAFETY: a handle of dlopen that is never closed, and a NUL-terminated name.
    let address = unsafe { libc::dlsym(library, name.as_ptr()) };
    assert!(!address.is_null(), "{name:?} is missing");
    address
}

/// Copies a string of C.
fn text(string: *const c_char) -> String {
    assert!(!string.is_null());
    // SAFETY: not null, and NUL-terminated; the callers pass strings that live until their next call.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}

/// The functions of `helper.h`.
struct Helper(*mut c_void);

impl Helper {
    /// Opens the library that `tools/check_cuda.sh` compiles.
    fn open() -> Self {
        let path = repository("target/check_cuda/libcheck_cuda.so");
        Self(open_library(&path, libc::RTLD_NOW).unwrap())
    }

    /// Returns the answer of a function that takes a string; `None` is null.
    fn ask(&self, function: &CStr, argument: &str) -> Option<String> {
        type Question = unsafe extern "C" fn(*const c_char) -> *const c_char;
        let argument = CString::new(argument).unwrap();
        // SAFETY: the functions that the tests name have this type in helper.h.
        let function: Question = unsafe { std::mem::transmute(symbol(self.0, function)) };
        // SAFETY: a NUL-terminated argument; the answer is copied before the next call.
        let answer = unsafe { function(argument.as_ptr()) };
        (!answer.is_null()).then(|| text(answer))
    }

    /// Opens a library as libtorch opens those that it needs later.
    fn open_as_libtorch(&self, library: &str) -> Result<(), String> {
        self.ask(c"check_cuda_open", library).map_or(Ok(()), Err)
    }

    /// Returns how an operator handles CUDA tensors: `kernel`, `composite`, `none` or `unknown`.
    fn kernel(&self, operator: &str) -> String {
        self.ask(c"check_cuda_kernel", operator).unwrap()
    }
}

#[test]
#[ignore = "needs libtorch's CUDA libraries: make check-cuda"]
fn cuda_without_driver_opens_and_returns_unsupported() {
    check_in_own_process("cuda_without_driver_opens_and_returns_unsupported", || {
        open_cuda();
        assert_shipped_files_are_used();
    });
}
