//! Pixels to the bytes of a picture file, and these to base64.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use serde_json::Value;

use super::output_format::OutputFormat;
use crate::error::{Error, Result};

/// Keyword of the PNG text chunk that holds the parameters. Other programs for Stable Diffusion look there too.
pub const METADATA_KEYWORD: &str = "parameters";

/// An RGB picture: 8 bits a channel, rows from top to bottom without padding.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    width: u32,
    height: u32,
    rgb: Vec<u8>,
}

/// The size alone: pixels are no reading matter, and a user's own.
impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture({}x{})", self.width, self.height)
    }
}

impl Picture {
    /// A picture of `width` times `height` pixels from `rgb`, three bytes a pixel.
    ///
    /// # Errors
    /// Internal if a side is 0 or `rgb` does not hold exactly that many bytes: pictures come from the VAE decoder, so
    /// that a mismatch is a mistake of this backend.
    pub fn new(width: u32, height: u32, rgb: Vec<u8>) -> Result<Self> {
        let expected = u64::from(width) * u64::from(height);
        if expected == 0 || expected.checked_mul(3) != u64::try_from(rgb.len()).ok() {
            return Err(Error::internal(format!(
                "{} bytes do not make an RGB picture of {width}x{height} pixels",
                rgb.len()
            )));
        }
        Ok(Self { width, height, rgb })
    }

    /// Width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The pixels, `[height, width, 3]`.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }
}

/// Encodes a picture. A PNG carries `metadata`, a JSON object, in an iTXt chunk with the keyword [`METADATA_KEYWORD`]; the other formats
/// carry none.
///
/// # Errors
/// InvalidArgument for a picture larger than the format can hold; Internal if the encoder fails.
pub fn encode(picture: &Picture, output: &OutputFormat, metadata: &Value) -> Result<Vec<u8>> {
    let format = output.format();
    if picture.width.max(picture.height) > format.max_side() {
        return Err(Error::invalid_argument(format!(
            "a picture of {}x{} pixels is too large for {}, which holds {} a side",
            picture.width,
            picture.height,
            format.name(),
            format.max_side()
        )));
    }
    let encoded = match *output {
        OutputFormat::Png => png(picture, metadata),
        OutputFormat::Jpeg { quality } => jpeg(picture, quality),
        OutputFormat::Webp { quality } => webp(picture, quality),
    };
    encoded.map_err(|error| Error::internal(format!("{} encoder: {error}", format.name())))
}

/// Bytes as base64 with padding, in the standard alphabet (RFC 4648, section 4).
pub fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

fn png(picture: &Picture, metadata: &Value) -> std::result::Result<Vec<u8>, String> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, picture.width, picture.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // A generated picture hardly compresses: higher levels win a few percent and take many times as long.
    encoder.set_compression(png::Compression::Fast);
    // iTXt and not tEXt, which holds Latin-1 only.
    encoder
        .add_itxt_chunk(METADATA_KEYWORD.into(), metadata.to_string())
        .and_then(|()| encoder.write_header())
        .and_then(|mut writer| {
            writer.write_image_data(&picture.rgb)?;
            writer.finish()
        })
        .map_err(|error| error.to_string())?;
    Ok(file)
}

fn jpeg(picture: &Picture, quality: u8) -> std::result::Result<Vec<u8>, String> {
    let mut file = Vec::new();
    JpegEncoder::new_with_quality(&mut file, quality)
        .encode(
            &picture.rgb,
            picture.width,
            picture.height,
            ExtendedColorType::Rgb8,
        )
        .map_err(|error| error.to_string())?;
    Ok(file)
}

fn webp(picture: &Picture, quality: u8) -> std::result::Result<Vec<u8>, String> {
    // `encode` of the same type would panic where this returns an error.
    webp::Encoder::from_rgb(&picture.rgb, picture.width, picture.height)
        .encode_simple(false, f32::from(quality))
        .map(|file| file.to_vec())
        .map_err(|error| format!("{error:?}"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use crate::config::{ModelParameters, PipelineClass};
    use crate::request::generate::GenerateRequest;
    use crate::request::metadata::Metadata;
    use crate::request::resolve::{Capabilities, RequestContext, RowInputs, resolve};
    use image::ImageDecoder as _;
    use test_support::psnr;

    const SCHEDULERS: &[&str] = &["DDIMScheduler", "PNDMScheduler"];

    fn context() -> RequestContext {
        let capabilities = Capabilities {
            class: PipelineClass::StableDiffusion,
            default_height: 64,
            default_width: 64,
            vae_scale_factor: 8,
            num_text_layers: 12,
            guidance_embedding: false,
            max_noise_level: 0,
            schedulers: SCHEDULERS,
        };
        RequestContext::new(capabilities, &ModelParameters::default()).unwrap()
    }

    fn request() -> GenerateRequest {
        let args = br#"{"seed": 11, "guidance_scale": 5.5, "num_images_per_prompt": 2}"#;
        let prompt = "a \"naïve\" 猫\0\n".as_bytes();
        let row = RowInputs {
            prompt,
            negative_prompt: Some(b"fog"),
            gen_args: Some(args),
            ..RowInputs::default()
        };
        resolve(&row, &context()).unwrap()
    }

    fn metadata() -> Value {
        Metadata::new(&request(), "PNDMScheduler", "sd_base", 1).to_json()
    }

    /// Soft waves, which lossy formats keep well.
    fn picture(width: u32, height: u32) -> Picture {
        let wave = |x: u32, y: u32, c: u32| {
            let phase = f64::from(x * (c + 1)) / 9.0 + f64::from(y) / 7.0;
            (127.5 + 100.0 * phase.sin()) as u8
        };
        let rgb = (0..height)
            .flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |c| wave(x, y, c))))
            .collect();
        Picture::new(width, height, rgb).unwrap()
    }

    fn decode_png(file: &[u8]) -> (Picture, Value) {
        let mut reader = png::Decoder::new(std::io::Cursor::new(file))
            .read_info()
            .unwrap();
        let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
        let frame = reader.next_frame(&mut rgb).unwrap();
        assert_eq!(frame.color_type, png::ColorType::Rgb);
        let [chunk] = &reader.info().utf8_text[..] else {
            unreachable!("one iTXt chunk");
        };
        assert_eq!(chunk.keyword, "parameters");
        let text = serde_json::from_str(&chunk.get_text().unwrap()).unwrap();
        (Picture::new(frame.width, frame.height, rgb).unwrap(), text)
    }

    #[test]
    fn png_keeps_every_pixel_and_the_parameters() {
        for (width, height) in [(1, 1), (24, 16), (64, 200)] {
            let picture = picture(width, height);
            let file = encode(&picture, &OutputFormat::Png, &metadata()).unwrap();
            let (decoded, text) = decode_png(&file);
            assert_eq!(decoded, picture);
            assert_eq!(text["prompt"], "a \"naïve\" 猫\0\n");
            assert_eq!(text["negative_prompt"], "fog");
            assert_eq!(text["image_index"], 1);
            assert_eq!(text["model"], "sd_base");
            let generator = text["generator"].as_str().unwrap();
            assert!(generator.starts_with("triton-diffusion 0."), "{generator}");
            assert_eq!(text["gen_args"]["scheduler"], "PNDMScheduler");
        }
    }

    #[test]
    fn the_parameters_in_a_png_ask_for_the_same_picture() {
        let file = encode(&picture(8, 8), &OutputFormat::Png, &metadata()).unwrap();
        let (_, text) = decode_png(&file);
        let gen_args = text["gen_args"].to_string();
        let row = RowInputs {
            prompt: text["prompt"].as_str().unwrap().as_bytes(),
            negative_prompt: Some(text["negative_prompt"].as_str().unwrap().as_bytes()),
            gen_args: Some(gen_args.as_bytes()),
            ..RowInputs::default()
        };
        let again = resolve(&row, &context()).unwrap();
        let expected = GenerateRequest {
            scheduler: Some("PNDMScheduler".into()),
            ..request()
        };
        assert_eq!(again, expected);
    }

    #[test]
    fn jpeg_is_close() {
        let picture = picture(72, 40);
        let encode = |quality| encode(&picture, &OutputFormat::Jpeg { quality }, &metadata());
        let file = encode(90).unwrap();
        let decoder =
            image::codecs::jpeg::JpegDecoder::new(std::io::Cursor::new(&file[..])).unwrap();
        assert_eq!(decoder.dimensions(), (72, 40));
        assert_eq!(decoder.color_type(), image::ColorType::Rgb8);
        let mut rgb = vec![0; picture.rgb().len()];
        decoder.read_image(&mut rgb).unwrap();
        assert!(psnr(&rgb, picture.rgb()) > 35.0);
        assert!(encode(10).unwrap().len() < file.len());
    }

    #[test]
    fn webp_is_close() {
        let picture = picture(72, 40);
        let encode = |quality| encode(&picture, &OutputFormat::Webp { quality }, &metadata());
        let file = encode(95).unwrap();
        let decoded = webp::Decoder::new(&file).decode().unwrap();
        assert_eq!((decoded.width(), decoded.height()), (72, 40));
        assert!(!decoded.is_alpha());
        // Lossy WebP halves the resolution of colours.
        assert!(psnr(&decoded, picture.rgb()) > 28.0);
        assert!(encode(10).unwrap().len() < file.len());
    }

    #[test]
    fn a_picture_has_all_its_bytes() {
        for (width, height, bytes) in [
            (0, 4, 0),
            (4, 0, 0),
            (2, 2, 11),
            (2, 2, 13),
            (u32::MAX, u32::MAX, 3),
        ] {
            let error = Picture::new(width, height, vec![0; bytes]).unwrap_err();
            assert!(matches!(error, Error::Internal(_)), "{error:?}");
        }
        let picture = Picture::new(2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!((picture.width(), picture.height()), (2, 1));
        assert_eq!(picture.rgb(), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_side_that_the_format_cannot_hold() {
        let picture = Picture::new(65_536, 1, vec![7; 65_536 * 3]).unwrap();
        for output in [
            OutputFormat::Jpeg { quality: 75 },
            OutputFormat::Webp { quality: 80 },
        ] {
            let error = encode(&picture, &output, &metadata()).unwrap_err();
            assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
        }
        assert!(encode(&picture, &OutputFormat::Png, &metadata()).is_ok());
    }

    #[test]
    fn base64_has_padding() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"f", "Zg=="),
            (b"fo", "Zm8="),
            (b"\xfb\xff", "+/8="),
        ] {
            assert_eq!(to_base64(bytes), text);
        }
    }
}
