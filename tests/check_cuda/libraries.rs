//! The libraries in `cuda/`: which of them the loader finds, and when.

use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;

use triton_diffusion::torch::cuda_libraries;

use crate::{
    Helper, assert_shipped_files_are_used, backend_folder, check_in_own_process, cuda_folder, open_cuda, open_library,
    role, run_in_own_process, symbol,
};

/// What libtorch opens by bare name when it is needed.
const OPENED_BY_LIBTORCH: [&str; 2] = ["libtorch_cuda_linalg.so", "libnvrtc.so.13"];

/// Functions of cuDNN that do nothing but open the part with their name.
const CUDNN_CHECKS: [&CStr; 4] = [
    c"cudnnGraphVersionCheck",
    c"cudnnOpsVersionCheck",
    c"cudnnCnnVersionCheck",
    c"cudnnAdvVersionCheck",
];

/// Returns the files in `cuda/`.
fn files() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(cuda_folder()).unwrap();
    let files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() > 20, "{files:?}");
    files
}

/// Opens CUDA, and then by name what libtorch and cuDNN open by name. Collects all failures.
fn check_libraries_are_found() {
    open_cuda();
    let helper = Helper::open();
    let mut failures: Vec<String> = OPENED_BY_LIBTORCH
        .iter()
        .filter_map(|name| helper.open_as_libtorch(name).err())
        .collect();
    let in_memory = libc::RTLD_NOW | libc::RTLD_NOLOAD;
    for name in cuda_libraries::NAMES {
        assert!(cuda_folder().join(name).exists(), "{name} is not shipped");
        failures.extend(open_library(Path::new(name), in_memory).err());
    }
    let cudnn = open_library(Path::new("libcudnn.so.9"), in_memory).unwrap();
    for name in CUDNN_CHECKS {
        type Check = unsafe extern "C" fn() -> c_int;
        // SAFETY: `cudnnStatus_t cudnn...VersionCheck(void)` (cudnn_graph.h, cudnn_ops.h, cudnn_cnn.h, cudnn_adv.h).
        let check: Check = unsafe { std::mem::transmute(symbol(cudnn, name)) };
        // SAFETY: no arguments. A device is not needed.
        let status = unsafe { check() };
        if status != 0 {
            failures.push(format!("{name:?} returns {status}"));
        }
    }
    failures.extend(compile_a_kernel().err());
    assert!(failures.is_empty(), "not found:\n{}", failures.join("\n"));
    assert_shipped_files_are_used();
}

/// Compiles a CUDA kernel with NVRTC, which opens `libnvrtc-builtins.so` by name. cuDNN and cuBLAS compile such kernels.
fn compile_a_kernel() -> Result<(), String> {
    type Create = unsafe extern "C" fn(
        *mut *mut c_void,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int;
    type Compile = unsafe extern "C" fn(*mut c_void, c_int, *const *const c_char) -> c_int;
    let nvrtc = open_library(Path::new("libnvrtc.so.13"), libc::RTLD_NOW | libc::RTLD_NOLOAD)?;
    // SAFETY: the types of the functions in nvrtc.h.
    let (create, compile) = unsafe {
        (
            std::mem::transmute::<*mut c_void, Create>(symbol(nvrtc, c"nvrtcCreateProgram")),
            std::mem::transmute::<*mut c_void, Compile>(symbol(nvrtc, c"nvrtcCompileProgram")),
        )
    };
    let mut program = ptr::null_mut();
    let source = c"extern \"C\" __global__ void twice(float *x) { x[threadIdx.x] *= 2; }";
    // SAFETY: a place for the program, NUL-terminated texts, and no headers.
    let created = unsafe {
        create(
            &mut program,
            source.as_ptr(),
            c"twice.cu".as_ptr(),
            0,
            ptr::null(),
            ptr::null(),
        )
    };
    assert_eq!(created, 0, "nvrtcCreateProgram");
    // SAFETY: the program of the call before, and no options.
    match unsafe { compile(program, 0, ptr::null()) } {
        0 => Ok(()),
        7 => Err("libnvrtc-builtins.so (NVRTC_ERROR_BUILTIN_OPERATION_FAILURE)".to_owned()),
        other => Err(format!("nvrtcCompileProgram returns {other}")),
    }
}

#[test]
#[ignore = "needs libtorch's CUDA libraries: make check-cuda"]
fn libraries_opened_by_name_are_found() {
    check_in_own_process(
        "libraries::libraries_opened_by_name_are_found",
        check_libraries_are_found,
    );
}

/// A container may have other versions in `LD_LIBRARY_PATH`. Here they are empty files, which cannot be opened.
#[test]
#[ignore = "needs libtorch's CUDA libraries: make check-cuda"]
fn libraries_in_the_search_path_do_not_replace_the_shipped_ones() {
    if role().is_some() {
        return check_libraries_are_found();
    }
    let others = test_support::temporary_folder();
    for file in files() {
        std::fs::write(others.path().join(file.file_name().unwrap()), "").unwrap();
    }
    let path = format!("{}:{}", others.path().display(), backend_folder().display());
    run_in_own_process(
        "libraries::libraries_in_the_search_path_do_not_replace_the_shipped_ones",
        "check",
        |command| {
            command.env("LD_LIBRARY_PATH", path);
        },
    );
}

#[test]
#[ignore = "needs libtorch's CUDA libraries: make check-cuda"]
fn shipped_libraries_all_open() {
    check_in_own_process("libraries::shipped_libraries_all_open", || {
        open_cuda();
        let failures: BTreeSet<_> = files()
            .iter()
            .filter_map(|file| open_library(file, libc::RTLD_NOW).err())
            .collect();
        assert!(failures.is_empty(), "{failures:#?}");
        assert_shipped_files_are_used();
    });
}
