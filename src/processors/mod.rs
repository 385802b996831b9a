//! The image processors of transformers and diffusers: images to the tensors that a network expects, and back.
//!
//! [`crate::models`] names the versions of the sources, and the errors that any of these functions can return.

mod clip;
mod common;
mod dpt;
pub mod vae;

pub use clip::ClipImageProcessor;
pub use dpt::DptImageProcessor;
