//! Conversion of decoded files to 8-bit color or to a depth map.

use image::DynamicImage;

use crate::{DepthMap, RgbImage};
use diffusion_core::{Error, Result};

/// Converts `image` to 8-bit RGB: 16 bits lose their lower 8, and alpha is laid over white.
///
/// # Errors
/// InvalidArgument for pixels in floating point.
pub(super) fn rgb(image: DynamicImage) -> Result<RgbImage> {
    let (width, height) = (image.width(), image.height());
    let rgb = match image {
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        DynamicImage::ImageLuma8(image) => pixels::<u8, 1>(image.as_raw(), |[l]| [l; 3]),
        DynamicImage::ImageLumaA8(image) => pixels::<u8, 2>(image.as_raw(), |[l, a]| [over_white(l, a); 3]),
        DynamicImage::ImageRgba8(image) => pixels::<u8, 4>(image.as_raw(), |[r, g, b, a]| {
            [r, g, b].map(|sample| over_white(sample, a))
        }),
        DynamicImage::ImageLuma16(image) => pixels::<u16, 1>(image.as_raw(), |[l]| [upper(l); 3]),
        DynamicImage::ImageLumaA16(image) => {
            pixels::<u16, 2>(image.as_raw(), |[l, a]| [over_white(upper(l), upper(a)); 3])
        }
        DynamicImage::ImageRgb16(image) => pixels::<u16, 3>(image.as_raw(), |rgb| rgb.map(upper)),
        DynamicImage::ImageRgba16(image) => pixels::<u16, 4>(image.as_raw(), |[r, g, b, a]| {
            [r, g, b].map(|sample| over_white(upper(sample), upper(a)))
        }),
        _ => return Err(floating_point()),
    };
    RgbImage::new(width, height, rgb)
}

/// Returns the stored values of a grayscale `image`.
///
/// # Errors
/// InvalidArgument for colors, for transparent pixels and for pixels in floating point.
pub(super) fn depth_map(image: &DynamicImage) -> Result<DepthMap> {
    let (bits, values) = match image {
        DynamicImage::ImageLuma8(image) => (8, floats(image.as_raw())),
        DynamicImage::ImageLuma16(image) => (16, floats(image.as_raw())),
        DynamicImage::ImageLumaA8(image) => (8, gray_values::<u8, 2>(image.as_raw(), u8::MAX)?),
        DynamicImage::ImageLumaA16(image) => (16, gray_values::<u16, 2>(image.as_raw(), u16::MAX)?),
        DynamicImage::ImageRgb8(image) => (8, gray_values::<u8, 3>(image.as_raw(), u8::MAX)?),
        DynamicImage::ImageRgb16(image) => (16, gray_values::<u16, 3>(image.as_raw(), u16::MAX)?),
        DynamicImage::ImageRgba8(image) => (8, gray_values::<u8, 4>(image.as_raw(), u8::MAX)?),
        DynamicImage::ImageRgba16(image) => (16, gray_values::<u16, 4>(image.as_raw(), u16::MAX)?),
        _ => return Err(floating_point()),
    };
    DepthMap::new(image.width(), image.height(), bits, values)
}

fn floating_point() -> Error {
    Error::invalid_argument("floating-point pixels are not supported; expected 8 or 16 bits")
}

/// Converts pixels of `N` samples to RGB.
fn pixels<T: Copy, const N: usize>(samples: &[T], rgb: impl Fn([T; N]) -> [u8; 3]) -> Vec<u8> {
    let mut result = Vec::with_capacity(samples.len() / N * 3);
    let (pixels, _) = samples.as_chunks::<N>();
    for pixel in pixels {
        result.extend_from_slice(&rgb(*pixel));
    }
    result
}

fn floats<T: Copy + Into<f32>>(samples: &[T]) -> Vec<f32> {
    samples.iter().map(|sample| (*sample).into()).collect()
}

/// Returns the first sample of each pixel of `N` samples. The other colors must be equal to it, and alpha (with 2 and 4
/// samples) must be `opaque`.
fn gray_values<T: Copy + PartialEq + Into<f32>, const N: usize>(samples: &[T], opaque: T) -> Result<Vec<f32>> {
    let (pixels, _) = samples.as_chunks::<N>();
    pixels
        .iter()
        .map(|pixel| {
            let colors = if N.is_multiple_of(2) { N - 1 } else { N };
            let gray = pixel[0];
            let is_gray = pixel[..colors].iter().all(|sample| *sample == gray)
                && pixel[colors..].iter().all(|alpha| *alpha == opaque);
            is_gray.then(|| gray.into()).ok_or_else(|| {
                Error::invalid_argument("expected a grayscale depth map of 8 or 16 bits without transparent pixels")
            })
        })
        .collect()
}

/// Returns the upper half of a sample of 16 bits.
fn upper(sample: u16) -> u8 {
    (sample >> 8) as u8
}

/// Lays a sample with `alpha` over white, rounded to nearest as in Pillow's `Image.alpha_composite`.
///
/// Source: Pillow, `src/libImaging/AlphaComposite.c`.
fn over_white(sample: u8, alpha: u8) -> u8 {
    let (sample, alpha) = (u32::from(sample), u32::from(alpha));
    let sum = sample * alpha + 255 * (255 - alpha);
    // sum / 255, rounded.
    ((sum + 127) / 255) as u8
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use image::{GrayAlphaImage, ImageBuffer, Luma, LumaA, Rgb, Rgb32FImage, Rgba, RgbaImage};

    /// Pillow's arithmetic, with 7 bits of extra precision.
    fn alpha_composite_over_white(sample: u8, alpha: u8) -> u8 {
        let (sample, alpha) = (u32::from(sample), u32::from(alpha));
        if alpha == 0 {
            return 255;
        }
        let blend = 255 * (255 - alpha);
        let outer = alpha * 255 + blend;
        let weight = alpha * 255 * 255 * 128 / outer;
        let sum = sample * weight + 255 * (255 * 128 - weight) + (0x80 << 7);
        ((((sum >> 8) + sum) >> 8) >> 7) as u8
    }

    #[test]
    fn alpha_over_white_equals_pillow() {
        for sample in 0..=255 {
            for alpha in 0..=255 {
                let expected = alpha_composite_over_white(sample, alpha);
                assert_eq!(over_white(sample, alpha), expected, "{sample} {alpha}");
            }
        }
    }

    #[test]
    fn sixteen_bit_samples_keep_their_upper_half() {
        let image = ImageBuffer::<Luma<u16>, _>::from_raw(2, 1, vec![0x12FF, 0xFF00]).unwrap();
        let image = rgb(image.into()).unwrap();
        assert_eq!(image.rgb(), [0x12, 0x12, 0x12, 0xFF, 0xFF, 0xFF]);
        let image = ImageBuffer::<Rgb<u16>, _>::from_raw(1, 1, vec![0x12FF, 0x00FF, 0xFFFF]);
        assert_eq!(rgb(image.unwrap().into()).unwrap().rgb(), [0x12, 0, 0xFF]);
        let image = ImageBuffer::<LumaA<u16>, _>::from_raw(1, 1, vec![0x00FF, 0x7FFF]).unwrap();
        assert_eq!(rgb(image.into()).unwrap().rgb(), [128; 3]);
        let image = ImageBuffer::<Rgba<u16>, _>::from_raw(1, 1, vec![0, 0x8000, 0xFFFF, 0x80FF]);
        assert_eq!(rgb(image.unwrap().into()).unwrap().rgb(), [127, 191, 255]);
    }

    #[test]
    fn transparent_pixels_are_white() {
        let image = RgbaImage::from_raw(2, 1, vec![9, 8, 7, 0, 9, 8, 7, 255]).unwrap();
        assert_eq!(rgb(image.into()).unwrap().rgb(), [255, 255, 255, 9, 8, 7]);
        let image = GrayAlphaImage::from_raw(2, 1, vec![9, 0, 9, 255]).unwrap();
        assert_eq!(rgb(image.into()).unwrap().rgb(), [255, 255, 255, 9, 9, 9]);
    }

    #[test]
    fn depth_maps_keep_their_values() {
        let image = ImageBuffer::<Luma<u16>, _>::from_raw(2, 1, vec![0x1234, 0xFFFF]).unwrap();
        let map = depth_map(&image.into()).unwrap();
        assert_eq!(map.bits(), 16);
        assert_eq!(map.values(), [4660.0, 65_535.0]);
        let opaque = RgbaImage::from_raw(2, 1, vec![9, 9, 9, 255, 8, 8, 8, 255]).unwrap();
        let map = depth_map(&opaque.into()).unwrap();
        assert_eq!((map.bits(), map.values()), (8, &[9.0, 8.0][..]));
    }

    #[test]
    fn depth_map_with_colors_is_refused() {
        let images: [DynamicImage; 4] = [
            RgbaImage::from_raw(1, 1, vec![9, 9, 8, 255]).unwrap().into(),
            RgbaImage::from_raw(1, 1, vec![9, 9, 9, 254]).unwrap().into(),
            GrayAlphaImage::from_raw(1, 1, vec![9, 0]).unwrap().into(),
            Rgb32FImage::from_raw(1, 1, vec![0.5; 3]).unwrap().into(),
        ];
        for image in images {
            let error = depth_map(&image).unwrap_err();
            assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
        }
    }
}
