//! The type of color images and masks.

use diffusion_core::{Error, Result};

/// An image of `CHANNELS` 8-bit samples a pixel, lines from top to bottom without padding.
#[derive(Clone, PartialEq, Eq)]
pub struct Raster<const CHANNELS: usize> {
    width: u32,
    height: u32,
    samples: Vec<u8>,
}

/// Prints the size only; pixels are private.
impl<const CHANNELS: usize> std::fmt::Debug for Raster<CHANNELS> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Raster<{CHANNELS}>({}x{})", self.width, self.height)
    }
}

impl<const CHANNELS: usize> Raster<CHANNELS> {
    /// Creates an image of `width` times `height` pixels from `samples`, `[height, width, CHANNELS]`.
    ///
    /// # Errors
    /// Internal if a side is 0 or `samples` has another length: callers compute both sizes.
    pub fn new(width: u32, height: u32, samples: Vec<u8>) -> Result<Self> {
        let pixels = u64::from(width) * u64::from(height);
        if pixels == 0 || pixels.checked_mul(CHANNELS as u64) != u64::try_from(samples.len()).ok() {
            return Err(Error::internal(format!(
                "{} bytes are not an image of {width}x{height} pixels and {CHANNELS} channel(s)",
                samples.len()
            )));
        }
        Ok(Self { width, height, samples })
    }

    /// Returns the width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Returns the height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Returns width and height in pixels.
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// Returns the samples, `[height, width, CHANNELS]`.
    pub fn samples(&self) -> &[u8] {
        &self.samples
    }

    pub(crate) fn samples_mut(&mut self) -> &mut [u8] {
        &mut self.samples
    }

    /// Converts each pixel.
    pub(crate) fn map<const N: usize>(&self, convert: impl Fn([u8; CHANNELS]) -> [u8; N]) -> Raster<N> {
        let (pixels, _) = self.samples.as_chunks::<CHANNELS>();
        Raster {
            width: self.width,
            height: self.height,
            samples: pixels.iter().flat_map(|pixel| convert(*pixel)).collect(),
        }
    }
}
