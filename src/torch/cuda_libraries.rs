//! The libraries that CUDA's libraries open by name while they run.
//!
//! libtorch, cuDNN and NVRTC open some libraries only when they first need them, by bare name. The system's loader
//! (ld.so(8)) does not find them in the folder of `libtorch_cuda.so`, or finds others first:
//!
//! - libtorch opens `libtorch_cuda_linalg.so` and `libnvrtc.so.13` with `at::DynamicLibrary` (ATen/DynamicLibrary.h).
//!   Its code is in `libtorch_cpu.so`, so the loader searches the folder of that library.
//! - `libnvrtc.so.13` opens `libnvrtc-builtins.so.13.0` and names no folder.
//! - cuDNN's parts and `libnvJitLink.so.13` are searched in `DT_RUNPATH`, which `LD_LIBRARY_PATH` precedes. It may have
//!   other versions.
//!
//! The loader takes a library that is open already if its `DT_SONAME` is the name (dlopen(3)). So the libraries are
//! opened by path before they are needed.

use std::path::Path;

use super::dlopen::open;

/// The libraries, in the order of opening: a library that links others of the list comes after them.
///
/// `libtorch_cuda_linalg.so` links `libtorch_cuda.so`, so the loader opens both or none.
pub const NAMES: &[&str] = &[
    "libnvJitLink.so.13",
    "libnvrtc-builtins.so.13.0",
    "libnvrtc.so.13",
    "libcudnn_graph.so.9",
    "libcudnn_ops.so.9",
    "libcudnn_cnn.so.9",
    "libcudnn_adv.so.9",
    "libcudnn_heuristic.so.9",
    "libcudnn_engines_precompiled.so.9",
    "libcudnn_engines_runtime_compiled.so.9",
    "libtorch_cuda_linalg.so",
];

/// Opens those of [`NAMES`] that are in the folder of `libtorch_cuda`. Call it before `libtorch_cuda` is opened.
///
/// Does nothing for a bare name: the loader's search path has the folder then.
///
/// # Errors
/// The loader's message for a library that is there and cannot be opened.
pub(super) fn open_next_to(libtorch_cuda: &Path) -> Result<(), String> {
    let Some(folder) = libtorch_cuda.parent().filter(|folder| !folder.as_os_str().is_empty()) else {
        return Ok(());
    };
    NAMES
        .iter()
        .map(|name| folder.join(name))
        .filter(|path| path.exists())
        .try_for_each(|path| open(&path))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn missing_libraries_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        open_next_to(&folder.path().join("libtorch_cuda.so")).unwrap();
        open_next_to(Path::new("libtorch_cuda.so")).unwrap();
    }

    #[test]
    fn unreadable_library_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("libnvrtc.so.13"), "").unwrap();
        let message = open_next_to(&folder.path().join("libtorch_cuda.so")).unwrap_err();
        assert!(message.contains("libnvrtc.so.13"), "{message}");
    }
}
