//! The functions of libtorch that tch lacks: generators, CUDA at run time, tensors over foreign memory, pinned memory.
//!
//! The only C++ of the project is `shim.cpp` in this folder.

pub mod cuda;
pub mod cuda_libraries;
mod device;
mod error;
mod from_blob;
mod generator;
pub mod memory;
mod upload;

pub use device::Device;
pub use error::is_out_of_memory;
pub use from_blob::{TensorStorage, from_blob};
pub use generator::Generator;
pub use upload::PinnedUploader;
