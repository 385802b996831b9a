//! Images without tensors: decoding of input files, Pillow's resizing and pasting, encoding of results.

pub mod compose;
pub mod decode;
mod depth_map;
pub mod encode;
mod mask;
mod output_format;
mod provenance;
mod raster;
pub mod resize;
mod rgb_image;

pub use decode::{EncodedImage, ImageLimits};
pub use depth_map::DepthMap;
pub use encode::{encode, to_base64};
pub use mask::Mask;
pub use output_format::OutputFormat;
pub use raster::Raster;
pub use rgb_image::RgbImage;
