//! Masks.

use crate::RgbImage;
use crate::raster::Raster;

/// A mask: an image of one 8-bit channel. Pillow's mode `L`.
pub type Mask = Raster<1>;

impl Mask {
    /// Returns the pixels, `[height, width]`; 0 is black.
    pub fn values(&self) -> &[u8] {
        self.samples()
    }

    /// Converts a color image to luma as Pillow's `convert("L")` does: ITU-R 601 weights in 16-bit fixed point, rounded to
    /// nearest.
    ///
    /// Source: Pillow, `src/libImaging/Convert.c` (`L24`).
    pub fn from_rgb(image: &RgbImage) -> Self {
        image.map(|rgb| [luma(rgb)])
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
    use diffusion_core::Error;

    #[test]
    fn luma_of_known_colors_equals_pillow() {
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
