//! Conversion of libtorch's error messages.

use crate::error::Error;

/// Words in libtorch's messages about a failed allocation.
///
/// Sources: `c10/core/impl/alloc_cpu.cpp` (`can't allocate memory`, `not enough memory`),
/// `c10/cuda/CUDACachingAllocator.cpp` (`out of memory`) and the C++ library (`std::bad_alloc`). `NVML_SUCCESS == r` is
/// from the same allocator: before it reports a lack of memory it asks NVML for the processes on the GPU, which fails on
/// MIG slices in containers without privileges. The rest are the status codes of cuBLAS and cuDNN when they cannot
/// allocate a workspace.
const OUT_OF_MEMORY: [&str; 8] = [
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "NVML_SUCCESS == r",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA_ERROR_OUT_OF_MEMORY",
];

/// Words in messages that a lack of memory causes, and other faults too.
///
/// Sources: `aten/src/ATen/native/cudnn/Conv_v8.cpp` (no plan of a convolution got its workspace), and the status codes of
/// cuBLAS and cuDNN when they make a handle.
const MAY_MEAN_OUT_OF_MEMORY: [&str; 4] = [
    "unable to find an engine to execute this computation",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_INTERNAL_ERROR",
];

/// Returns true if `message`, a text of libtorch, reports a failed allocation.
pub fn is_out_of_memory(message: &str) -> bool {
    OUT_OF_MEMORY.iter().any(|words| message.contains(words))
}

/// Returns true if `message`, a text of libtorch, may report a failed allocation. The caller finds out whether memory was
/// short.
pub fn may_mean_out_of_memory(message: &str) -> bool {
    MAY_MEAN_OUT_OF_MEMORY.iter().any(|words| message.contains(words))
}

/// Converts a message of libtorch into `OutOfMemory` or `Internal`.
///
/// Only the first line is kept: the rest is a C++ backtrace.
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
    fn from_message_allocation_failure_is_out_of_memory() {
        let cpu = "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: \
                   you tried to allocate 400000000000000 bytes.\n#0 c10::...";
        let error = from_message(cpu);
        assert!(matches!(error, Error::OutOfMemory(_)));
        assert!(!error.to_string().contains("#0"), "the backtrace stays out");
        assert!(matches!(
            from_message("CUDA out of memory. Tried to allocate"),
            Error::OutOfMemory(_)
        ));
        // A MIG slice in a container.
        let nvml = "NVML_SUCCESS == r INTERNAL ASSERT FAILED at \"/pytorch/c10/cuda/CUDACachingAllocator.cpp\":1165";
        assert!(matches!(from_message(nvml), Error::OutOfMemory(_)));
        assert_eq!(from_message("mat1 and mat2 shapes").kind(), ErrorKind::Internal);
    }

    #[test]
    fn from_message_of_several_causes_is_internal() {
        for message in [
            "GET was unable to find an engine to execute this computation",
            "FIND was unable to find an engine to execute this computation",
            "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
        ] {
            assert_eq!(from_message(message).kind(), ErrorKind::Internal, "{message}");
            assert!(may_mean_out_of_memory(message), "{message}");
        }
        assert!(!may_mean_out_of_memory(
            "CUDA error: an illegal memory access was encountered"
        ));
    }
}
