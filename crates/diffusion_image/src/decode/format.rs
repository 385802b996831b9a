//! The formats of input images, and decoding of all but JPEG.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::tiff::TiffDecoder;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat};

use super::{Header, ImageLimits, webp};
use diffusion_core::{Error, Result};

/// Bytes that a decoder may allocate in addition to the pixels: tables, lines, and text chunks before the pixels.
const SPARE_BYTES: u64 = 16 << 20;

/// Most frames of an animation.
pub(super) const MAX_FRAMES: usize = 1000;

/// The formats of an input image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Png,
    Jpeg,
    WebP,
    Bmp,
    Gif,
    Tiff,
}

impl Format {
    /// Detects the format from the first bytes of `file`.
    ///
    /// # Errors
    /// InvalidArgument for any other format.
    pub(super) fn of(file: &[u8]) -> Result<Self> {
        match image::guess_format(file) {
            Ok(ImageFormat::Png) => Ok(Self::Png),
            Ok(ImageFormat::Jpeg) => Ok(Self::Jpeg),
            Ok(ImageFormat::WebP) => Ok(Self::WebP),
            Ok(ImageFormat::Bmp) => Ok(Self::Bmp),
            Ok(ImageFormat::Gif) => Ok(Self::Gif),
            Ok(ImageFormat::Tiff) => Ok(Self::Tiff),
            _ => Err(Error::invalid_argument(
                "not an image of a known format: PNG, JPEG, WebP, BMP, GIF and TIFF are",
            )),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::WebP => "WebP",
            Self::Bmp => "BMP",
            Self::Gif => "GIF",
            Self::Tiff => "TIFF",
        }
    }

    /// Creates the error for a truncated file or one that breaks the rules of its format.
    pub(super) fn damaged(self) -> Error {
        Error::invalid_argument(format!("the {} is damaged or truncated", self.name()))
    }

    /// Creates the error for a well-formed file that no decoder here reads.
    pub(super) fn unsupported(self) -> Error {
        Error::invalid_argument(format!("this kind of {} is not supported", self.name()))
    }

    /// Converts a decoder's error without its words, some of which come from the file.
    fn error(self, error: &ImageError) -> Error {
        match error {
            ImageError::Unsupported(_) => self.unsupported(),
            ImageError::Limits(_) => {
                Error::invalid_argument(format!("the {} holds far more than its pixels", self.name()))
            }
            _ => self.damaged(),
        }
    }
}

/// Opens `file` and checks its header.
///
/// # Errors
/// InvalidArgument for a damaged header, an unsupported kind, and an image beyond the limits.
///
/// # Panics
/// Where a decoder does; the caller catches it.
pub(super) fn open<'a>(
    format: Format,
    file: &'a [u8],
    limits: &ImageLimits,
) -> Result<(Box<dyn ImageDecoder + 'a>, Header)> {
    let refused = |error: ImageError| format.error(&error);
    let reader = Cursor::new(file);
    let mut decoder: Box<dyn ImageDecoder + 'a> = match format {
        Format::Png => Box::new(PngDecoder::with_limits(reader, allowed(0)).map_err(refused)?),
        Format::WebP => {
            webp::check(file, limits)?;
            Box::new(WebPDecoder::new(reader).map_err(refused)?)
        }
        Format::Bmp => Box::new(BmpDecoder::new(reader).map_err(refused)?),
        Format::Gif => {
            check_frames(format, gif_frames(file))?;
            Box::new(GifDecoder::new(reader).map_err(refused)?)
        }
        Format::Tiff if has_jpeg_inside(file)? => return Err(format.unsupported()),
        Format::Tiff => Box::new(TiffDecoder::new(reader).map_err(refused)?),
        Format::Jpeg => return Err(Error::internal("the image crate does not decode JPEG here")),
    };
    let (width, height) = decoder.dimensions();
    limits.check_size(width, height)?;
    decoder.set_limits(allowed(decoder.total_bytes())).map_err(refused)?;
    // Pillow ignores a broken orientation, too.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok((decoder, (width, height, orientation)))
}

/// Decodes the first image of `file` and turns it upright.
///
/// # Errors
/// Those of [`open`], and InvalidArgument for damaged or missing pixels.
///
/// # Panics
/// As [`open`].
pub(super) fn decode(format: Format, file: &[u8], limits: &ImageLimits) -> Result<DynamicImage> {
    let (decoder, (_, _, orientation)) = open(format, file, limits)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(|error| format.error(&error))?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// Checks the number of frames of an animation. Only the first frame is used.
///
/// # Errors
/// InvalidArgument if there are more than [`MAX_FRAMES`].
pub(super) fn check_frames(format: Format, frames: usize) -> Result<()> {
    if frames > MAX_FRAMES {
        return Err(Error::invalid_argument(format!(
            "the {} has more than {MAX_FRAMES} frames",
            format.name()
        )));
    }
    Ok(())
}

/// Counts the frames of a GIF without decoding pixels, up to one more than [`MAX_FRAMES`].
fn gif_frames(file: &[u8]) -> usize {
    let mut options = gif::DecodeOptions::new();
    options.skip_frame_decoding(true);
    let Ok(mut decoder) = options.read_info(file) else {
        return 0;
    };
    // Damage after the first frame does not matter.
    std::iter::from_fn(|| decoder.next_frame_info().ok().flatten().map(drop))
        .take(MAX_FRAMES + 1)
        .count()
}

/// Returns whether the pixels of a TIFF are JPEG files. Their decoder trusts the size in the JPEG header, whatever the TIFF
/// says, and allocates for it.
fn has_jpeg_inside(file: &[u8]) -> Result<bool> {
    const OLD_JPEG: u16 = 6;
    const JPEG: u16 = 7;
    let compression: Option<u16> = tiff::decoder::Decoder::new(Cursor::new(file))
        .and_then(|mut decoder| decoder.find_tag_unsigned(tiff::tags::Tag::Compression))
        .map_err(|_| Format::Tiff.damaged())?;
    Ok(matches!(compression, Some(OLD_JPEG | JPEG)))
}

/// Returns the limits of a decoder for `pixels` bytes of pixels, twice: for a frame and the canvas around it.
fn allowed(pixels: u64) -> image::Limits {
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(pixels.saturating_mul(2).saturating_add(SPARE_BYTES));
    limits
}
