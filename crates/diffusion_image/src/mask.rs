//! Masks.

use crate::RgbImage;
use diffusion_core::{Error, Result};

/// A mask: an image of one 8-bit channel, lines from top to bottom without padding. Pillow's mode `L`.
#[derive(Clone, PartialEq, Eq)]
pub struct Mask {
    width: u32,
    height: u32,
    values: Vec<u8>,
}

/// Prints the size only; pixels are private.
impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mask({}x{})", self.width, self.height)
    }
}

impl Mask {
    /// Creates a mask of `width` times `height` pixels from `values`, one byte a pixel.
    ///
    /// # Errors
    /// Internal if a side is 0 or `values` has another length.
    pub fn new(width: u32, height: u32, values: Vec<u8>) -> Result<Self> {
        let expected = u64::from(width) * u64::from(height);
        if expected == 0 || Some(expected) != u64::try_from(values.len()).ok() {
            return Err(Error::internal(format!(
                "{} bytes are not a mask of {width}x{height} pixels",
                values.len()
            )));
        }
        Ok(Self { width, height, values })
    }

    /// Converts a colour image to luma as Pillow's `convert("L")` does: ITU-R 601 weights in 16-bit fixed point, rounded to
    /// nearest.
    ///
    /// Source: Pillow, `src/libImaging/Convert.c` (`L24`).
    pub fn from_rgb(image: &RgbImage) -> Self {
        let values = image
            .rgb()
            .chunks_exact(3)
            .map(|pixel| luma([pixel[0], pixel[1], pixel[2]]))
            .collect();
        Self {
            width: image.width(),
            height: image.height(),
            values,
        }
    }

    /// Applies `change` to each value.
    pub(super) fn map(&self, change: impl Fn(u8) -> u8) -> Self {
        Self {
            values: self.values.iter().copied().map(change).collect(),
            ..*self
        }
    }

    /// Returns the width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Returns the height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Returns the pixels, `[height, width]`; 0 is black.
    pub fn values(&self) -> &[u8] {
        &self.values
    }
}

/// Computes the luma of one pixel. The weights add up to 65536: a gray pixel keeps its value.
fn luma([red, green, blue]: [u8; 3]) -> u8 {
    let sum = u32::from(red) * 19_595 + u32::from(green) * 38_470 + u32::from(blue) * 7_471;
    ((sum + 0x8000) >> 16) as u8
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn luma_of_known_colours_equals_pillow() {
        for (rgb, expected) in [
            ([0, 0, 0], 0),
            ([255, 255, 255], 255),
            ([255, 0, 0], 76),
            ([0, 255, 0], 150),
            ([0, 0, 255], 29),
            ([1, 2, 3], 2),
        ] {
            assert_eq!(luma(rgb), expected, "{rgb:?}");
        }
    }

    #[test]
    fn luma_of_gray_is_the_gray_value() {
        for value in 0..=255 {
            assert_eq!(luma([value; 3]), value);
        }
    }

    #[test]
    fn mask_of_wrong_length_is_an_error() {
        for (width, height, bytes) in [(0, 3, 0), (3, 0, 0), (2, 2, 3), (2, 2, 5)] {
            let error = Mask::new(width, height, vec![0; bytes]).unwrap_err();
            assert!(matches!(error, Error::Internal(_)), "{error:?}");
        }
        let rgb = RgbImage::new(2, 1, vec![255, 0, 0, 9, 9, 9]).unwrap();
        let mask = Mask::from_rgb(&rgb);
        assert_eq!(mask, Mask::new(2, 1, vec![76, 9]).unwrap());
        assert_eq!((mask.width(), mask.height()), (2, 1));
    }
}
