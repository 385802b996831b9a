//! Color images.

use crate::raster::Raster;

/// An RGB image: 8 bits a channel.
pub type RgbImage = Raster<3>;

impl RgbImage {
    /// Returns the pixels, `[height, width, 3]`.
    pub fn rgb(&self) -> &[u8] {
        self.samples()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use diffusion_core::Error;

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
