//! Pictures: from files and tensors, resized as Pillow does it, and into files.

pub mod compose;
pub mod convert;
pub mod decode;
pub mod depth_map;
pub mod encode;
pub mod grey;
pub mod output_format;
mod raster;
pub mod resize;

pub use encode::Picture;
