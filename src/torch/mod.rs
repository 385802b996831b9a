//! What tch lacks of libtorch: generators of one's own, CUDA found at run time, its errors sorted.
//!
//! The only C++ of the project is `shim.cpp` in this folder.

pub mod cuda;
mod device;
mod error;
mod from_blob;
mod generator;
pub mod memory;
mod upload;

pub use device::Device;
pub use error::is_out_of_memory;
pub use from_blob::{Memory, borrow};
pub use generator::Generator;
pub use upload::Upload;
