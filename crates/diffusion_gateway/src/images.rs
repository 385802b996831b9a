//! The little that the gateway does to images: masks in the backend's convention, and sizes.

use std::io::Cursor;

use axum::http::StatusCode;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use image::{DynamicImage, GrayImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use serde_json::json;

use crate::error::{ApiError, Result};
use diffusion_core::{Error, ErrorKind};
use diffusion_image::resize::{Filter, resize};
use diffusion_image::{EncodedImage, ImageLimits, OutputFormat, encode};

/// Largest width and height of an image, in pixels.
pub const MAX_SIDE: u32 = 16_384;
/// Largest product of width and height: the backend's limit.
pub const MAX_PIXELS: u64 = 16_777_216;
/// Limits of an input image: those of the backend.
const LIMITS: ImageLimits = ImageLimits {
    max_base64_bytes: 32 << 20,
    max_pixels: MAX_PIXELS,
    max_side: MAX_SIDE,
};
/// Most memory that the decoder of a mask may allocate: 16-bit RGBA.
const MASK_BYTES: u64 = MAX_PIXELS * 8;

/// Runs work that takes processor time, away from the threads that serve connections.
///
/// # Errors
/// Those of the work; Internal if it panics.
pub async fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::internal("decoding an image failed")))
}

/// Encodes a file as base64, as the backend's inputs have it.
pub fn to_base64(file: &[u8]) -> String {
    BASE64_STANDARD.encode(file)
}

/// Reads width and height of an image in base64.
///
/// # Errors
/// The text is no image within the limits.
pub fn size_of(image: &str) -> Result<(u32, u32)> {
    let image = open("image", image)?;
    Ok((image.width(), image.height()))
}

/// Resizes an image in base64 with Pillow's Lanczos filter, as the backend does. One of that size already is returned
/// as it is.
///
/// # Errors
/// The text is no image within the limits, or its pixels are damaged.
pub fn resized(image: String, width: u32, height: u32) -> Result<String> {
    let opened = open("image", &image)?;
    if (opened.width(), opened.height()) == (width, height) {
        return Ok(image);
    }
    let pixels = opened.rgb().map_err(of_image)?;
    let pixels = resize(&pixels, width, height, Filter::Lanczos).map_err(of_image)?;
    // It is an input, not a generated image.
    let file = encode(&pixels, &OutputFormat::Png, &json!({}), false).map_err(of_image)?;
    Ok(to_base64(&file))
}

/// Swaps black and white in a mask in base64.
///
/// # Errors
/// The text is no image within the limits, or its pixels are damaged.
pub fn inverted(mask: &str) -> Result<String> {
    let mask = open("mask", mask)?.mask().map_err(of_image)?;
    let values = mask.values().iter().map(|value| 255 - value).collect();
    gray_png(mask.width(), mask.height(), values)
}

/// Makes the backend's mask of OpenAI's: what is transparent there is white here, and is repainted. Returns base64.
///
/// # Errors
/// The file is no PNG or WebP within the limits, is damaged, or has no alpha channel.
pub fn of_alpha(file: &[u8]) -> Result<String> {
    let damaged = |_| ApiError::argument("mask", "the file is damaged or larger than the limit");
    let format = image::guess_format(file).ok();
    let format = format.filter(|format| matches!(format, ImageFormat::Png | ImageFormat::WebP));
    let format = format.ok_or_else(|| ApiError::argument("mask", "expected a PNG or a WebP with an alpha channel"))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MASK_BYTES);
    let mut reader = ImageReader::with_format(Cursor::new(file), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        let message = format!("an image of {width}x{height} pixels is too large: the limit is {MAX_PIXELS} pixels");
        return Err(ApiError::argument("mask", message));
    }
    if !decoder.color_type().has_alpha() {
        let message =
            "the image has no alpha channel; transparent pixels of the mask are repainted, opaque ones are kept";
        return Err(ApiError::argument("mask", message));
    }
    let orientation = decoder.orientation().map_err(damaged)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    image.apply_orientation(orientation);
    let image = image.into_luma_alpha8();
    let values = image.pixels().map(|pixel| 255 - pixel.0[1]).collect();
    gray_png(image.width(), image.height(), values)
}

fn gray_png(width: u32, height: u32, values: Vec<u8>) -> Result<String> {
    let mut file = Vec::new();
    GrayImage::from_raw(width, height, values)
        .map(|image| image.write_to(&mut Cursor::new(&mut file), ImageFormat::Png))
        .and_then(std::result::Result::ok)
        .ok_or_else(|| ApiError::internal("the mask cannot be encoded"))?;
    Ok(to_base64(&file))
}

fn open(name: &'static str, text: &str) -> Result<EncodedImage> {
    EncodedImage::new(name, text.as_bytes(), &LIMITS).map_err(of_image)
}

/// The errors of images already name their input.
fn of_image(error: Error) -> ApiError {
    let status = match error.kind() {
        ErrorKind::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    ApiError::new(status, error.to_string())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use image::{RgbImage, RgbaImage};

    fn file(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut file = Vec::new();
        image.write_to(&mut Cursor::new(&mut file), format).unwrap();
        file
    }

    fn gray(base64: &str) -> GrayImage {
        let file = BASE64_STANDARD.decode(base64).unwrap();
        image::load_from_memory(&file).unwrap().into_luma8()
    }

    #[test]
    fn transparent_pixels_become_white() {
        // One row: black and opaque, white and transparent, white and half transparent.
        let pixels = vec![0, 0, 0, 255, 255, 255, 255, 0, 255, 255, 255, 100];
        let mask = DynamicImage::from(RgbaImage::from_raw(3, 1, pixels).unwrap());
        for format in [ImageFormat::Png, ImageFormat::WebP] {
            let converted = gray(&of_alpha(&file(&mask, format)).unwrap());
            assert_eq!(converted.into_raw(), [0, 255, 155], "{format:?}");
        }
    }

    #[test]
    fn masks_without_alpha_damaged_and_large_ones_are_refused() {
        let opaque = DynamicImage::from(RgbImage::new(8, 8));
        let png = file(&DynamicImage::from(RgbaImage::new(64, 64)), ImageFormat::Png);
        // The header of a PNG of 65000x65000 pixels, without pixels.
        let mut large = png.clone();
        large[16..24].copy_from_slice(&[0, 0, 0xfd, 0xe8, 0, 0, 0xfd, 0xe8]);
        for (bytes, words) in [
            (file(&opaque, ImageFormat::Png), "no alpha channel"),
            (file(&opaque, ImageFormat::Jpeg), "expected a PNG or a WebP"),
            (b"zanzibar".to_vec(), "expected a PNG or a WebP"),
            (png[..png.len() / 2].to_vec(), "damaged"),
            (large, "larger than the limit"),
        ] {
            let error = of_alpha(&bytes).unwrap_err();
            assert_eq!((error.status, error.param), (400, Some("mask")));
            assert!(error.message.contains(words), "{error:?}");
        }
    }

    #[test]
    fn an_image_is_resized_and_one_of_the_size_stays() {
        let image = to_base64(&file(&DynamicImage::from(RgbImage::new(8, 16)), ImageFormat::Png));
        assert_eq!(size_of(&image), Ok((8, 16)));
        assert_eq!(resized(image.clone(), 8, 16), Ok(image.clone()));
        let wide = resized(image, 24, 16).unwrap();
        assert_eq!(size_of(&wide), Ok((24, 16)));
        let error = resized("zanzibar".into(), 8, 8).unwrap_err();
        assert_eq!(error.status, 400);
        assert!(error.message.starts_with("input `image`: "), "{error:?}");
        assert!(!error.message.contains("zanzibar"));
    }

    #[test]
    fn an_inverted_mask_has_black_and_white_swapped() {
        let mask = GrayImage::from_raw(2, 1, vec![0, 255]).unwrap();
        let mask = to_base64(&file(&DynamicImage::from(mask), ImageFormat::Png));
        assert_eq!(gray(&inverted(&mask).unwrap()).into_raw(), [255, 0]);
    }
}
