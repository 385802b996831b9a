//! The functions of libtorch that tch lacks: generators, CUDA at run time, tensors over foreign memory, pinned memory.
//!
//! The only C++ of the project is in this folder.

pub mod cpu_allocator;
pub mod cuda;
pub mod cuda_libraries;
mod device;
mod dlopen;
mod error;
mod failure;
mod from_blob;
mod generator;
mod host_copy;
pub mod kernels;
mod library;
pub mod memory;
pub mod numbers;
mod pinned;
mod stream;
pub mod threads;
mod upload;

/// Prepares libtorch in this process. Must be called before libtorch computes or allocates anything.
///
/// Replaces the CPU allocator, opens CUDA if this machine has it, and shortens the waits of OpenMP's threads.
pub fn initialize() {
    cpu_allocator::install();
    cuda::open_early();
    threads::shorten_waits();
}

pub use device::Device;
pub use error::is_out_of_memory;
pub use failure::classify_errors;
#[cfg(feature = "failpoints")]
pub use failure::lose_device;
pub use from_blob::{TensorStorage, from_blob};
pub use generator::Generator;
pub use host_copy::HostCopy;
pub use stream::Stream;
pub use upload::{Unwritten, Uploader};
