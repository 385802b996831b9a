//! Conversion of libtorch's errors, by their message.

use crate::error::Error;

/// Words in the message of a failed allocation.
///
/// `c10/core/impl/alloc_cpu.cpp` (`can't allocate memory`, `not enough memory`), `c10/cuda/CUDACachingAllocator.cpp`
/// (`out of memory`) and the C++ library (`std::bad_alloc`); the rest come from cuBLAS and cuDNN
/// when they cannot allocate their workspace.
const OUT_OF_MEMORY: [&str; 7] = [
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA_ERROR_OUT_OF_MEMORY",
];

/// Returns whether a message of libtorch is about a failed allocation.
pub fn is_out_of_memory(message: &str) -> bool {
    OUT_OF_MEMORY.iter().any(|words| message.contains(words))
}

/// Converts a message of libtorch to an error: `OutOfMemory` or `Internal`.
///
/// Only the first line is kept: the lines after it are a C++ backtrace.
pub fn from_message(message: &str) -> Error {
    let first_line = message.lines().next().unwrap_or_default();
    if is_out_of_memory(message) {
        Error::out_of_memory(format!("libtorch: {first_line}"))
    } else {
        Error::internal(format!("libtorch: {first_line}"))
    }
}

#[cfg(feature = "tch")]
impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        match error {
            tch::TchError::Torch(message) => from_message(&message),
            other => from_message(&other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn message_of_a_failed_allocation_is_out_of_memory() {
        let cpu = "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: \
                   you tried to allocate 400000000000000 bytes.\n#0 c10::...";
        let error = from_message(cpu);
        assert!(matches!(error, Error::OutOfMemory(_)));
        assert!(!error.to_string().contains("#0"), "the backtrace stays out");
        assert!(matches!(
            from_message("CUDA out of memory. Tried to allocate"),
            Error::OutOfMemory(_)
        ));
        assert_eq!(from_message("mat1 and mat2 shapes").kind(), ErrorKind::Internal);
    }
}
