//! The common interface of colour images and masks.

use super::resize::{self, Filter, Part};
use crate::Mask;
use crate::RgbImage;
use diffusion_core::Result;

/// An image of 8-bit samples, `CHANNELS` a pixel, lines from top to bottom without padding.
pub(super) trait Raster: Sized {
    const CHANNELS: usize;

    fn size(&self) -> (u32, u32);

    fn samples(&self) -> &[u8];

    /// # Errors
    /// Internal if a side is 0 or `samples` has another length.
    fn from_samples(width: u32, height: u32, samples: Vec<u8>) -> Result<Self>;

    /// Resizes as Pillow's `resize((width, height), filter, box)` does.
    ///
    /// # Errors
    /// Internal if a side is 0.
    fn resize_part(&self, part: Part, width: u32, height: u32, filter: Filter) -> Result<Self>;

    /// Resizes as Pillow's `resize((width, height), filter)` does.
    ///
    /// # Errors
    /// Internal if a side is 0.
    fn resize(&self, width: u32, height: u32, filter: Filter) -> Result<Self> {
        self.resize_part(Part::whole(self.size()), width, height, filter)
    }
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

    fn resize_part(&self, part: Part, width: u32, height: u32, filter: Filter) -> Result<Self> {
        resize::rgb_part(self, part, width, height, filter)
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

    fn resize_part(&self, part: Part, width: u32, height: u32, filter: Filter) -> Result<Self> {
        resize::mask_part(self, part, width, height, filter)
    }
}
