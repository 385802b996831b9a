//! The GPU architectures that libtorch's CUDA library has kernels for.

use std::collections::BTreeSet;

use crate::{cuda_folder, repository};

/// The start of the flags with which libtorch was compiled. `CUDAHooks::showConfig` prints them (libtorch,
/// `aten/src/ATen/cuda/detail/CUDAHooks.cpp`), but only with a driver.
const FLAGS: &[u8] = b"-gencode;arch=";

/// Returns the flags of nvcc in libtorch's CUDA library.
fn flags() -> String {
    let library = std::fs::read(cuda_folder().join("libtorch_cuda.so")).unwrap();
    let start = library.windows(FLAGS.len()).position(|window| window == FLAGS).unwrap();
    let text = library[start..].split(|byte| *byte == 0).next().unwrap();
    String::from_utf8(text.to_vec()).unwrap()
}

/// Returns the names `sm_...` in a text.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("sm_"))
        .collect()
}

#[test]
#[ignore = "needs libtorch's CUDA libraries: make check-cuda"]
fn architectures_equal_the_documented_ones() {
    let flags = flags();
    let page = std::fs::read_to_string(repository("docs/gpu.md")).unwrap();
    let section = page.split("\n## ").find(|part| part.starts_with("Architectures\n"));
    let table = section.unwrap().lines().filter(|line| line.starts_with('|'));
    assert_eq!(names(&flags), names(&table.collect::<String>()), "{flags}");
    // A flag `code=compute_...` adds PTX, which the driver compiles for other GPUs.
    assert!(
        !flags.contains("code=compute_"),
        "docs/gpu.md says that there is no PTX: {flags}"
    );
}
