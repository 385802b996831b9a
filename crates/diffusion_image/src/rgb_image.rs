//! The image type of inputs and outputs.

use diffusion_core::{Error, Result};

/// An RGB image: 8 bits a channel, lines from top to bottom without padding.
#[derive(Clone, PartialEq, Eq)]
pub struct RgbImage {
    width: u32,
    height: u32,
    rgb: Vec<u8>,
}

/// Prints the size only; pixels are private.
impl std::fmt::Debug for RgbImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RgbImage({}x{})", self.width, self.height)
    }
}

impl RgbImage {
    /// Creates an image of `width` times `height` pixels from `rgb`, three bytes a pixel.
    ///
    /// # Errors
    /// Internal if a side is 0 or `rgb` has another length: callers compute both sizes.
    pub fn new(width: u32, height: u32, rgb: Vec<u8>) -> Result<Self> {
        let expected = u64::from(width) * u64::from(height);
        if expected == 0 || expected.checked_mul(3) != u64::try_from(rgb.len()).ok() {
            return Err(Error::internal(format!(
                "{} bytes are not an RGB image of {width}x{height} pixels",
                rgb.len()
            )));
        }
        Ok(Self { width, height, rgb })
    }

    /// Returns the width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Returns the height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Returns the pixels, `[height, width, 3]`.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn rgb_image_of_wrong_length_is_an_error() {
        for (width, height, bytes) in [(0, 4, 0), (4, 0, 0), (2, 2, 11), (2, 2, 13), (u32::MAX, u32::MAX, 3)] {
            let error = RgbImage::new(width, height, vec![0; bytes]).unwrap_err();
            assert!(matches!(error, Error::Internal(_)), "{error:?}");
        }
        let image = RgbImage::new(2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!((image.width(), image.height()), (2, 1));
        assert_eq!(image.rgb(), [1, 2, 3, 4, 5, 6]);
    }
}
