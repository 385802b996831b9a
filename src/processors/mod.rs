//! The image processors of transformers and diffusers: images to the tensors that a network expects, and back.

mod clip;
mod dpt;
pub mod vae;

pub use clip::ClipImageProcessor;
pub use dpt::DptImageProcessor;
