//! The pretend GPU, and a process for each test.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::PathBuf;
use std::process::Command;

/// Set in the process of a single test.
const CHILD: &str = "PRETEND_CHILD";

fn library() -> PathBuf {
    let library = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/pretend/libtorch_cuda.so"));
    assert!(library.exists(), "{} is missing: run `make pretend`", library.display());
    library
}

/// Runs `test` in its own process, with the pretend GPU and these environment variables.
pub fn in_own_process<F: FnOnce()>(variables: &[(&str, &str)], test: F) {
    if std::env::var_os(CHILD).is_some() {
        return test();
    }
    // `c_abi::gpu::images::name::{{closure}}` is the closure of the test `gpu::images::name`.
    let closure = std::any::type_name::<F>();
    let name = closure.strip_suffix("::{{closure}}").unwrap();
    let (_, name) = name.split_once("::").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .env("TRITON_DIFFUSION_CUDA_PATH", library().parent().unwrap())
        .env("OMP_NUM_THREADS", "1")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success() && out.contains("1 passed"),
        "{name} in its own process: {}\n{out}\n{err}",
        output.status
    );
    print!("{out}");
}

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut std::ffi::c_void;
    fn dlsym(handle: *mut std::ffi::c_void, name: *const c_char) -> *mut std::ffi::c_void;
}

/// Returns a function of the library, which the backend has opened.
///
/// # Safety
/// `F` is the type of a pointer to that function (tests/gpu/pretend/control.h).
unsafe fn function<F: Copy>(name: &CStr) -> F {
    const RTLD_NOW: c_int = 2;
    const RTLD_NOLOAD: c_int = 4;
    let path = CString::new(library().to_str().unwrap()).unwrap();
    // SAFETY: NUL-terminated names; the library is never closed.
    let symbol = unsafe {
        let handle = dlopen(path.as_ptr(), RTLD_NOW | RTLD_NOLOAD);
        assert!(!handle.is_null(), "the backend has not opened the pretend library");
        dlsym(handle, name.as_ptr())
    };
    assert!(!symbol.is_null() && size_of::<F>() == size_of_val(&symbol));
    // SAFETY: the caller vouches for the type.
    unsafe { std::mem::transmute_copy(&symbol) }
}

type Log = extern "C" fn(bool);
type TakeLog = extern "C" fn() -> *const c_char;
type SetNumber = extern "C" fn(u64);
type GetNumber = extern "C" fn() -> u64;
type GetMemory = extern "C" fn(c_int, c_int) -> u64;
type Arm = extern "C" fn(bool, u64, *const c_char, bool, bool);

/// Starts a new log.
pub fn start_log() {
    // SAFETY: the type is that of control.h.
    let log: Log = unsafe { function(c"pretend_log") };
    log(true);
}

/// Returns the lines since the log was started or taken.
pub fn take_log() -> Vec<String> {
    // SAFETY: the type is that of control.h.
    let take: TakeLog = unsafe { function(c"pretend_take_log") };
    // SAFETY: NUL-terminated, and valid until the next call.
    let text = unsafe { CStr::from_ptr(take()) };
    text.to_str().unwrap().lines().map(str::to_owned).collect()
}

/// Makes the `nth` allocation from now on fail, once; 0 cancels.
pub fn fail_allocation(nth: u64) {
    // SAFETY: the type is that of control.h.
    let fail: SetNumber = unsafe { function(c"pretend_fail_allocation") };
    fail(nth);
}

/// Returns the number of allocations so far.
pub fn allocations() -> u64 {
    // SAFETY: the type is that of control.h.
    let allocations: GetNumber = unsafe { function(c"pretend_allocations") };
    allocations()
}

/// Limits the memory of each device.
pub fn set_limit(bytes: u64) {
    // SAFETY: the type is that of control.h.
    let set: SetNumber = unsafe { function(c"pretend_set_limit") };
    set(bytes);
}

/// What to ask about the memory of a device.
#[derive(Clone, Copy)]
pub enum Memory {
    /// Bytes in use.
    Used = 0,
    /// Bytes in use or cached.
    Cached = 1,
    /// The most bytes that were in use.
    Peak = 2,
    /// Bytes of pinned memory of the host.
    Pinned = 3,
}

/// Returns bytes of a device.
pub fn memory(device: c_int, what: Memory) -> u64 {
    // SAFETY: the type is that of control.h.
    let memory: GetMemory = unsafe { function(c"pretend_memory") };
    memory(device, what as c_int)
}

/// A failure of the pretend GPU.
pub struct Failure<'a> {
    /// Whether an allocation fails, and not an operator.
    pub allocation: bool,
    /// How many operators or allocations from now on.
    pub nth: u64,
    /// The message.
    pub text: &'a str,
    /// Whether the allocator counts it as out of memory.
    pub counts: bool,
    /// Whether every call fails from then on.
    pub fatal: bool,
}

/// Arms a failure.
pub fn arm(failure: &Failure<'_>) {
    let text = CString::new(failure.text).unwrap();
    // SAFETY: the type is that of control.h.
    let call: Arm = unsafe { function(c"pretend_arm") };
    // The library copies the text.
    call(
        failure.allocation,
        failure.nth,
        text.as_ptr(),
        failure.counts,
        failure.fatal,
    );
}
