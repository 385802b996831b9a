//! Which format a file has, and the decoders of all but JPEG.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::tiff::TiffDecoder;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat};

use super::{Limits, webp};
use diffusion_core::{Error, Result};

/// Bytes that a decoder may allocate beside the pixels: tables, rows, and text chunks on the way to the pixels.
const SPARE_BYTES: u64 = 16 << 20;

/// Frames of an animation. Whoever sends more did not mean an image.
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
    /// The format that the first bytes of `file` tell.
    ///
    /// # Errors
    /// InvalidArgument if they tell another one or none.
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

    /// The error for a file that breaks off or breaks the rules of its format.
    pub(super) fn damaged(self) -> Error {
        Error::invalid_argument(format!("the {} is damaged or truncated", self.name()))
    }

    /// The error for a file that is well formed, as far as can be seen, but that no decoder here reads.
    pub(super) fn unsupported(self) -> Error {
        Error::invalid_argument(format!("this kind of {} is not supported", self.name()))
    }

    /// The decoder's error without its words, some of which come from the file.
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

/// The first image of `file`, upright.
///
/// # Errors
/// InvalidArgument for a file that is damaged or not supported, and for an image beyond the limits.
///
/// # Panics
/// Where a decoder does; the caller catches it.
pub(super) fn decode(format: Format, file: &[u8], limits: &Limits) -> Result<DynamicImage> {
    let reader = Cursor::new(file);
    match format {
        Format::Png => upright(format, PngDecoder::with_limits(reader, allowed(0)), limits),
        Format::WebP => {
            webp::check(file, limits)?;
            upright(format, WebPDecoder::new(reader), limits)
        }
        Format::Bmp => upright(format, BmpDecoder::new(reader), limits),
        Format::Gif => {
            check_frames(format, gif_frames(file))?;
            upright(format, GifDecoder::new(reader), limits)
        }
        Format::Tiff if has_jpeg_inside(file)? => Err(format.unsupported()),
        Format::Tiff => upright(format, TiffDecoder::new(reader), limits),
        Format::Jpeg => Err(Error::internal("a JPEG has a decoder of its own")),
    }
}

/// Checks the number of frames in an animation, of which only the first is looked at.
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

/// How many frames a GIF has, up to one more than [`MAX_FRAMES`]. Their pixels are skipped.
fn gif_frames(file: &[u8]) -> usize {
    let mut options = gif::DecodeOptions::new();
    options.skip_frame_decoding(true);
    let Ok(mut decoder) = options.read_info(file) else {
        return 0;
    };
    // What breaks off after the first frame does not matter.
    std::iter::from_fn(|| decoder.next_frame_info().ok().flatten().map(drop))
        .take(MAX_FRAMES + 1)
        .count()
}

/// Whether the pixels of a TIFF are JPEG files of their own. Their decoder takes the size in such a file's header for true,
/// whatever the TIFF says, and allocates as much.
fn has_jpeg_inside(file: &[u8]) -> Result<bool> {
    const OLD_JPEG: u16 = 6;
    const JPEG: u16 = 7;
    let compression: Option<u16> = tiff::decoder::Decoder::new(Cursor::new(file))
        .and_then(|mut decoder| decoder.find_tag_unsigned(tiff::tags::Tag::Compression))
        .map_err(|_| Format::Tiff.damaged())?;
    Ok(matches!(compression, Some(OLD_JPEG | JPEG)))
}

/// The limits of a decoder for `pixels` bytes of pixels, which it may need twice: a frame, and the canvas around it.
fn allowed(pixels: u64) -> image::Limits {
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(pixels.saturating_mul(2).saturating_add(SPARE_BYTES));
    limits
}

fn upright<D: ImageDecoder>(format: Format, opened: image::ImageResult<D>, limits: &Limits) -> Result<DynamicImage> {
    let refused = |error: ImageError| format.error(&error);
    let mut decoder = opened.map_err(refused)?;
    let (width, height) = decoder.dimensions();
    limits.check_size(width, height)?;
    decoder.set_limits(allowed(decoder.total_bytes())).map_err(refused)?;
    // A broken orientation is none, as in Pillow; the pixels may be in order.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(refused)?;
    image.apply_orientation(orientation);
    Ok(image)
}
