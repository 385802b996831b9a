//! The functions of `src/torch/shim.cpp`, called against libtorch's CUDA library.

use std::collections::BTreeSet;
use std::ffi::{c_char, c_int, c_void};
use std::ptr;

use tch::{Device, Kind, Tensor};

use crate::{check_in_own_process, open_cuda, repository, text};

unsafe extern "C" {
    fn td_message_free(message: *mut c_char);
    fn td_from_blob(
        data: *mut c_void,
        sizes: *const i64,
        rank: usize,
        dtype: c_int,
        device: c_int,
        owner: *mut c_void,
        release: unsafe extern "C" fn(*mut c_void),
        out: *mut *mut c_void,
    ) -> *mut c_char;
    fn td_cuda_is_linked() -> bool;
    fn td_cuda_set_device(index: c_int) -> *mut c_char;
    fn td_cuda_empty_cache() -> *mut c_char;
    fn td_cuda_memory(index: c_int, free: *mut usize, total: *mut usize) -> *mut c_char;
    fn td_cuda_out_of_memory_count(index: c_int, count: *mut i64) -> *mut c_char;
    fn td_cuda_empty(
        sizes: *const i64,
        rank: usize,
        dtype: c_int,
        index: c_int,
        stream: i64,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    fn td_pinned_empty(bytes: usize, out: *mut *mut c_void) -> *mut c_char;
    fn td_stream_new(index: c_int, stream: *mut i64) -> *mut c_char;
    fn td_stream_make_current(index: c_int, stream: i64) -> *mut c_char;
    fn td_stream_synchronize(index: c_int, stream: i64) -> *mut c_char;
    fn td_event_record(event: *mut *mut c_void, index: c_int, stream: i64) -> *mut c_char;
    fn td_event_synchronize(event: *mut c_void) -> *mut c_char;
    fn td_event_free(event: *mut c_void, index: c_int);
    fn td_copy_non_blocking(to: *mut c_void, from: *const c_void, index: c_int, stream: i64) -> *mut c_char;
}

/// The functions that never use CUDA.
const OF_THE_HOST: [&str; 5] = [
    "td_message_free",
    "td_generator_new",
    "td_generator_free",
    "td_randn",
    "td_libtorch_address",
];

/// `c10::ScalarType::Float` (c10/core/ScalarType.h).
const FLOAT: c_int = 6;

/// What libtorch says when there is no driver, or one that is too old.
const NO_DRIVER: [&str; 3] = [
    // The allocator knows no device.
    "Invalid device argument",
    "CUDA driver version is insufficient for CUDA runtime version",
    "Found no NVIDIA driver on your system",
];

/// Converts a message of the shim and frees it.
fn outcome(message: *mut c_char) -> Result<(), String> {
    if message.is_null() {
        return Ok(());
    }
    let copy = text(message);
    // SAFETY: a message of the shim, which nothing refers to any more.
    unsafe { td_message_free(message) };
    Err(copy)
}

/// Makes a tensor of four numbers over memory of the host that is called memory of GPU 0.
fn from_blob() -> *mut c_char {
    unsafe extern "C" fn release(_: *mut c_void) {}
    let mut data = [0f32; 4];
    let mut tensor = ptr::null_mut();
    // SAFETY: `data` lives until the tensor is freed, and nothing reads it through the tensor.
    let message = unsafe {
        td_from_blob(
            data.as_mut_ptr().cast(),
            [4].as_ptr(),
            1,
            FLOAT,
            0,
            ptr::null_mut(),
            release,
            &mut tensor,
        )
    };
    free(tensor);
    message
}

/// Frees a tensor of the shim, if it made one.
fn free(tensor: *mut c_void) {
    if !tensor.is_null() {
        // SAFETY: a new `at::Tensor*` that nobody else owns, which is what a `C_tensor` is.
        drop(unsafe { Tensor::from_ptr(tensor.cast()) });
    }
}

fn pinned_empty() -> *mut c_char {
    let mut tensor = ptr::null_mut();
    // SAFETY: a place for the tensor.
    let message = unsafe { td_pinned_empty(16, &mut tensor) };
    free(tensor);
    message
}

fn memory() -> *mut c_char {
    let (mut free, mut total) = (0, 0);
    // SAFETY: places for two numbers.
    unsafe { td_cuda_memory(0, &mut free, &mut total) }
}

fn out_of_memory_count() -> *mut c_char {
    let mut count = 0;
    // SAFETY: a place for the number.
    unsafe { td_cuda_out_of_memory_count(0, &mut count) }
}

fn cuda_empty() -> *mut c_char {
    let mut tensor = ptr::null_mut();
    // SAFETY: one size, the default stream, and a place for the tensor.
    let message = unsafe { td_cuda_empty([4].as_ptr(), 1, FLOAT, 0, 0, &mut tensor) };
    free(tensor);
    message
}

fn stream_new() -> *mut c_char {
    let mut stream = 0;
    // SAFETY: a place for the number.
    unsafe { td_stream_new(0, &mut stream) }
}

fn event() -> *mut c_char {
    let mut event = ptr::null_mut();
    // SAFETY: a place for the event, which is freed once; 0 is the default stream.
    unsafe {
        let message = td_event_record(&mut event, 0, 0);
        td_event_free(event, 0);
        message
    }
}

fn copy_non_blocking() -> *mut c_char {
    let [to, from] = [0, 1].map(|_| Tensor::ones([4], (Kind::Float, Device::Cpu)));
    // SAFETY: live tensors, and the default stream.
    unsafe { td_copy_non_blocking(to.as_ptr().cast_mut().cast(), from.as_ptr().cast(), 0, 0) }
}

/// Calls a function of the shim and returns its message.
type Call = fn() -> *mut c_char;

/// The functions that use CUDA, and whether they need a driver.
const CALLS: [(&str, bool, Call); 13] = [
    ("td_from_blob", false, from_blob),
    // SAFETY: no arguments.
    ("td_cuda_empty_cache", false, || unsafe { td_cuda_empty_cache() }),
    // SAFETY: null is an event that was never recorded.
    ("td_event_synchronize", false, || unsafe {
        td_event_synchronize(ptr::null_mut())
    }),
    // SAFETY: passes a number.
    ("td_cuda_set_device", true, || unsafe { td_cuda_set_device(0) }),
    ("td_cuda_memory", true, memory),
    ("td_pinned_empty", true, pinned_empty),
    ("td_cuda_out_of_memory_count", true, out_of_memory_count),
    ("td_cuda_empty", true, cuda_empty),
    ("td_stream_new", true, stream_new),
    // SAFETY: passes numbers; 0 is the default stream.
    ("td_stream_make_current", true, || unsafe {
        td_stream_make_current(0, 0)
    }),
    ("td_event_record", true, event),
    ("td_copy_non_blocking", true, copy_non_blocking),
    // SAFETY: passes numbers; 0 is the default stream.
    ("td_stream_synchronize", true, || unsafe { td_stream_synchronize(0, 0) }),
];

#[test]
#[ignore = "needs libtorch's CUDA libraries: make check-cuda"]
fn shim_functions_without_driver_work_or_name_the_driver() {
    check_in_own_process(
        "shim_functions::shim_functions_without_driver_work_or_name_the_driver",
        || {
            let device = open_cuda();
            // SAFETY: reads an atomic of libtorch's.
            assert!(unsafe { td_cuda_is_linked() });
            for (name, needs_driver, call) in CALLS {
                let outcome = outcome(call());
                println!("{name}: {outcome:?}");
                match outcome {
                    Err(message) if needs_driver && !device => {
                        let first_line = message.lines().next().unwrap();
                        let clear = NO_DRIVER.iter().any(|text| first_line.contains(text));
                        assert!(clear, "{name}: {message}");
                    }
                    other => assert_eq!(other.is_ok(), device || !needs_driver, "{name}: {other:?}"),
                }
            }
        },
    );
}

#[test]
#[ignore = "belongs to make check-cuda"]
fn shim_functions_are_all_checked() {
    let header = std::fs::read_to_string(repository("src/torch/shim.h")).unwrap();
    let code = header.lines().filter(|line| !line.starts_with("//"));
    let declared: BTreeSet<_> = code
        .flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '('))
        .filter_map(|word| word.split_once('(').map(|(name, _)| name))
        .filter(|name| name.starts_with("td_"))
        .collect();
    let mut checked: BTreeSet<_> = CALLS.iter().map(|(name, _, _)| *name).collect();
    checked.extend(OF_THE_HOST);
    checked.extend(["td_cuda_is_linked", "td_event_free"]);
    assert_eq!(declared, checked);
}
