//! Encoding of images as files, and of files as base64.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use serde_json::Value;

use crate::provenance::{PNG_XMP_KEYWORD, XMP, mark_jpeg, mark_webp};
use crate::{OutputFormat, RgbImage};
use diffusion_core::memory::check_available;
use diffusion_core::{Error, Result};

/// Keyword of the PNG text chunk that holds the parameters; other programs for Stable Diffusion use the same.
pub const METADATA_KEYWORD: &str = "parameters";

/// Memory that an encoder takes for a pixel, in bytes: the file, which is hardly smaller than the pixels, as it grows, and
/// its base64.
const ENCODED_BYTES: u64 = 12;

/// Encodes an image.
///
/// A PNG holds `metadata`, a JSON object, in an iTXt chunk with the keyword [`METADATA_KEYWORD`].
///
/// With `provenance`, every file holds an XMP packet that says that a model generated the image, and which program made
/// the file. JPEG and WebP then also hold `metadata`, as EXIF's `UserComment` in UTF-16. A segment of JPEG is limited:
/// if the object is too long, its longest entries are left out of it. The pixels do not depend on `provenance`.
///
/// # Errors
/// InvalidArgument for an image larger than the format can hold; OutOfMemory without memory for the file; Internal if the
/// encoder fails.
///
/// ```
/// use diffusion_image::{OutputFormat, RgbImage, encode};
///
/// let red = RgbImage::new(2, 1, vec![255, 0, 0, 255, 0, 0])?;
/// let file = encode(&red, &OutputFormat::Png, &serde_json::json!({ "seed": 7 }), true)?;
/// assert!(file.starts_with(b"\x89PNG"));
/// # Ok::<(), diffusion_core::Error>(())
/// ```
pub fn encode(image: &RgbImage, output: &OutputFormat, metadata: &Value, provenance: bool) -> Result<Vec<u8>> {
    let format = output.format();
    if image.width().max(image.height()) > format.max_side() {
        return Err(Error::invalid_argument(format!(
            "an image of {}x{} pixels is too large for {}; the limit is {} pixels a side",
            image.width(),
            image.height(),
            format.name(),
            format.max_side()
        )));
    }
    let pixels = u64::from(image.width()) * u64::from(image.height());
    check_available(pixels.saturating_mul(ENCODED_BYTES), "encoding an image")?;
    let encoded = match *output {
        OutputFormat::Png => png(image, metadata, provenance),
        OutputFormat::Jpeg { quality } if provenance => jpeg(image, quality).and_then(|file| mark_jpeg(file, metadata)),
        OutputFormat::Jpeg { quality } => jpeg(image, quality),
        OutputFormat::Webp { quality } if provenance => webp(image, quality).and_then(|file| mark_webp(file, metadata)),
        OutputFormat::Webp { quality } => webp(image, quality),
    };
    encoded.map_err(|error| Error::internal(format!("{} encoder: {error}", format.name())))
}

/// Encodes bytes as base64 with padding, in the standard alphabet (RFC 4648, section 4).
pub fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

fn png(image: &RgbImage, metadata: &Value, provenance: bool) -> std::result::Result<Vec<u8>, String> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // Generated images hardly compress: higher levels save a few percent and take many times as long.
    encoder.set_compression(png::Compression::Fast);
    // tEXt holds Latin-1 only.
    encoder
        .add_itxt_chunk(METADATA_KEYWORD.into(), metadata.to_string())
        .and_then(|()| {
            if provenance {
                encoder.add_itxt_chunk(PNG_XMP_KEYWORD.into(), XMP.into())?;
            }
            Ok(())
        })
        .and_then(|()| encoder.write_header())
        .and_then(|mut writer| {
            writer.write_image_data(image.rgb())?;
            writer.finish()
        })
        .map_err(|error| error.to_string())?;
    Ok(file)
}

fn jpeg(image: &RgbImage, quality: u8) -> std::result::Result<Vec<u8>, String> {
    let mut file = Vec::new();
    JpegEncoder::new_with_quality(&mut file, quality)
        .encode(image.rgb(), image.width(), image.height(), ExtendedColorType::Rgb8)
        .map_err(|error| error.to_string())?;
    Ok(file)
}

fn webp(image: &RgbImage, quality: u8) -> std::result::Result<Vec<u8>, String> {
    // `encode` panics where `encode_simple` returns an error.
    webp::Encoder::from_rgb(image.rgb(), image.width(), image.height())
        .encode_simple(false, f32::from(quality))
        .map(|file| file.to_vec())
        .map_err(|error| format!("{error:?}"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use image::ImageDecoder as _;
    use serde_json::json;

    fn metadata() -> Value {
        json!({ "prompt": "a \"naïve\" 猫\0\n", "gen_args": { "seed": 11, "guidance_scale": 5.5 } })
    }

    /// Soft waves, which lossy formats keep well.
    fn image(width: u32, height: u32) -> RgbImage {
        let wave = |x: u32, y: u32, c: u32| {
            let phase = f64::from(x * (c + 1)) / 9.0 + f64::from(y) / 7.0;
            (127.5 + 100.0 * phase.sin()) as u8
        };
        let rgb = (0..height)
            .flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |c| wave(x, y, c))))
            .collect();
        RgbImage::new(width, height, rgb).unwrap()
    }

    fn psnr(a: &[u8], b: &[u8]) -> f64 {
        assert_eq!(a.len(), b.len());
        let squares: f64 = std::iter::zip(a, b)
            .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
            .sum();
        10.0 * (255.0 * 255.0 * a.len() as f64 / squares).log10()
    }

    fn decode_png(file: &[u8]) -> (RgbImage, Value) {
        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
        let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
        let frame = reader.next_frame(&mut rgb).unwrap();
        assert_eq!(frame.color_type, png::ColorType::Rgb);
        let [chunk, xmp] = &reader.info().utf8_text[..] else {
            unreachable!("two iTXt chunks");
        };
        assert_eq!(chunk.keyword, "parameters");
        assert_eq!(xmp.keyword, "XML:com.adobe.xmp");
        let text = serde_json::from_str(&chunk.get_text().unwrap()).unwrap();
        (RgbImage::new(frame.width, frame.height, rgb).unwrap(), text)
    }

    #[test]
    fn png_round_trip_keeps_pixels_and_parameters() {
        for (width, height) in [(1, 1), (24, 16), (64, 200)] {
            let image = image(width, height);
            let file = encode(&image, &OutputFormat::Png, &metadata(), true).unwrap();
            let (decoded, text) = decode_png(&file);
            assert_eq!(decoded, image);
            assert_eq!(text, metadata());
        }
    }

    #[test]
    fn jpeg_round_trip_is_close() {
        let image = image(72, 40);
        let encode = |quality| encode(&image, &OutputFormat::Jpeg { quality }, &metadata(), true);
        let file = encode(90).unwrap();
        let decoder = image::codecs::jpeg::JpegDecoder::new(std::io::Cursor::new(&file[..])).unwrap();
        assert_eq!(decoder.dimensions(), (72, 40));
        assert_eq!(decoder.color_type(), image::ColorType::Rgb8);
        let mut rgb = vec![0; image.rgb().len()];
        decoder.read_image(&mut rgb).unwrap();
        assert!(psnr(&rgb, image.rgb()) > 35.0);
        assert!(encode(10).unwrap().len() < file.len());
    }

    #[test]
    fn webp_round_trip_is_close() {
        let image = image(72, 40);
        let encode = |quality| encode(&image, &OutputFormat::Webp { quality }, &metadata(), true);
        let file = encode(95).unwrap();
        let decoded = webp::Decoder::new(&file).decode().unwrap();
        assert_eq!((decoded.width(), decoded.height()), (72, 40));
        assert!(!decoded.is_alpha());
        // Lossy WebP halves the resolution of colors.
        assert!(psnr(&decoded, image.rgb()) > 28.0);
        assert!(encode(10).unwrap().len() < file.len());
    }

    #[test]
    fn side_beyond_the_format_is_an_error() {
        let image = RgbImage::new(65_536, 1, vec![7; 65_536 * 3]).unwrap();
        for output in [OutputFormat::Jpeg { quality: 75 }, OutputFormat::Webp { quality: 80 }] {
            let error = encode(&image, &output, &metadata(), true).unwrap_err();
            assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
        }
        assert!(encode(&image, &OutputFormat::Png, &metadata(), true).is_ok());
    }

    #[test]
    fn base64_is_padded() {
        for (bytes, text) in [(&b""[..], ""), (b"f", "Zg=="), (b"fo", "Zm8="), (b"\xfb\xff", "+/8=")] {
            assert_eq!(to_base64(bytes), text);
        }
    }
}
