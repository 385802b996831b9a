//! Images: from files and tensors, resized as Pillow does it, and into files.

pub mod compose;
pub mod decode;
pub mod depth_map;
pub mod encode;
pub mod mask;
pub mod output_format;
mod raster;
pub mod resize;

pub use encode::RgbImage;
