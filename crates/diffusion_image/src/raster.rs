//! The common interface of colour images and masks.

use crate::{Mask, RgbImage};
use diffusion_core::Result;

/// An image of 8-bit samples, lines from top to bottom without padding.
pub trait Raster: Sized {
    /// Samples of a pixel.
    const CHANNELS: usize;

    /// Returns width and height in pixels.
    fn size(&self) -> (u32, u32);

    /// Returns the samples, `[height, width, CHANNELS]`.
    fn samples(&self) -> &[u8];

    /// Creates an image from its samples.
    ///
    /// # Errors
    /// Internal if a side is 0 or `samples` has another length.
    fn from_samples(width: u32, height: u32, samples: Vec<u8>) -> Result<Self>;
}

impl Raster for RgbImage {
    const CHANNELS: usize = 3;

    fn size(&self) -> (u32, u32) {
        (self.width(), self.height())
    }

    fn samples(&self) -> &[u8] {
        self.rgb()
    }

    fn from_samples(width: u32, height: u32, samples: Vec<u8>) -> Result<Self> {
        Self::new(width, height, samples)
    }
}

impl Raster for Mask {
    const CHANNELS: usize = 1;

    fn size(&self) -> (u32, u32) {
        (self.width(), self.height())
    }

    fn samples(&self) -> &[u8] {
        self.values()
    }

    fn from_samples(width: u32, height: u32, samples: Vec<u8>) -> Result<Self> {
        Self::new(width, height, samples)
    }
}
