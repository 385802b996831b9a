//! Decoding of input images: base64 text of a PNG, JPEG, WebP, BMP, GIF or TIFF.
//!
//! Nothing in the text can be trusted. [`EncodedImage::new`] checks what is cheap to check: the length of the text, the
//! base64, the format by its first bytes, and the size in the header. Pixels are decoded later, by decoders with limits.
//! Errors name the input and the limit and never quote the text or the file.
//!
//! A decoded image has the bytes of `PIL.ImageOps.exif_transpose(PIL.Image.open(file)).convert("RGB")`, with three
//! exceptions where Pillow's result is of no use:
//! - Transparent pixels are laid over white. Pillow shows the color that they hide.
//! - Masks of 16 bits keep their upper 8, as color images do. Pillow turns every value above 255 into white.
//! - The first frame of a GIF may cover a part of the canvas. The rest is white.
//!
//! Color profiles are ignored, as in Pillow. TIFFs with a palette, with JPEG inside, with floating-point pixels and in
//! color spaces other than RGB and CMYK are refused.

mod base64_text;
mod format;
mod jpeg;
mod pixels;
mod webp;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use image::DynamicImage;
use image::metadata::Orientation;

use self::format::Format;
use crate::{DepthMap, Mask, RgbImage};
use diffusion_core::memory::check_available;
use diffusion_core::{Context, Error, Result};

/// Limits of an input image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLimits {
    /// Bytes of the base64 text, with the prefix of a `data:` URL and with white space.
    pub max_base64_bytes: usize,
    /// Width times height in pixels.
    pub max_pixels: u64,
    /// Width, and height, in pixels.
    pub max_side: u32,
}

impl ImageLimits {
    fn check_size(&self, width: u32, height: u32) -> Result<()> {
        if width == 0 || height == 0 {
            return Err(Error::invalid_argument(format!(
                "an image of {width}x{height} pixels is empty"
            )));
        }
        if width.max(height) > self.max_side {
            return Err(Error::invalid_argument(format!(
                "an image of {width}x{height} pixels is too large: the limit is {} a side",
                self.max_side
            )));
        }
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return Err(Error::invalid_argument(format!(
                "an image of {width}x{height} pixels is too large: the limit is {} pixels",
                self.max_pixels
            )));
        }
        Ok(())
    }
}

/// Width, height and orientation of a file.
type Header = (u32, u32, Orientation);

/// Memory that a decoder and the conversion to RGB take for a pixel, in bytes: 16-bit RGBA, and its copy of 8 bits.
const DECODED_BYTES: u64 = 12;

/// An image file whose header is checked and whose pixels are not decoded yet. A clone shares the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedImage {
    input: &'static str,
    file: Arc<Vec<u8>>,
    format: Format,
    width: u32,
    height: u32,
    limits: ImageLimits,
}

/// Prints the size only; pixels are private.
impl std::fmt::Debug for EncodedImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EncodedImage({}x{})", self.width, self.height)
    }
}

impl EncodedImage {
    /// Reads the base64 text of input `input` up to the header of the file.
    ///
    /// # Errors
    /// InvalidArgument, with the name of the input, for a text that is too long, empty or not base64, for a file of
    /// another format, with a damaged header or of an unsupported kind, and for an image beyond the limits.
    pub fn new(input: &'static str, text: &[u8], limits: &ImageLimits) -> Result<Self> {
        Self::read(input, text, limits).context(|| format!("input `{input}`"))
    }

    fn read(input: &'static str, text: &[u8], limits: &ImageLimits) -> Result<Self> {
        let file = base64_text::decode(text, limits.max_base64_bytes)?;
        let format = Format::of(&file)?;
        let (width, height, orientation) = contained(format, || match format {
            Format::Jpeg => jpeg::open(&file, limits).map(|(_, header)| header),
            _ => format::open(format, &file, limits).map(|(_, header)| header),
        })?;
        let (width, height) = match orientation {
            Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH => (height, width),
            _ => (width, height),
        };
        Ok(Self {
            input,
            file: Arc::new(file),
            format,
            width,
            height,
            limits: *limits,
        })
    }

    /// Returns the size of the file in bytes.
    pub fn file_size(&self) -> usize {
        self.file.len()
    }

    /// Returns the width of the upright image in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Returns the height of the upright image in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Decodes a color image.
    ///
    /// # Errors
    /// InvalidArgument, with the name of the input, for damaged or truncated pixels and for pixels of an unsupported kind;
    /// OutOfMemory without memory for the pixels.
    pub fn rgb(&self) -> Result<RgbImage> {
        self.decode(pixels::rgb)
    }

    /// Decodes a mask: [`EncodedImage::rgb`], then Pillow's `convert("L")`.
    ///
    /// # Errors
    /// Those of [`EncodedImage::rgb`].
    pub fn mask(&self) -> Result<Mask> {
        Ok(Mask::from_rgb(&self.rgb()?))
    }

    /// Decodes a depth map: a grayscale image of 8 or 16 bits. A file in a color format passes if its pixels are gray
    /// and opaque.
    ///
    /// # Errors
    /// Those of [`EncodedImage::rgb`], and InvalidArgument for an image with colors or with transparent pixels.
    pub fn depth_map(&self) -> Result<DepthMap> {
        self.decode(|image| pixels::depth_map(&image))
    }

    fn decode<T>(&self, convert: impl FnOnce(DynamicImage) -> Result<T>) -> Result<T> {
        let pixels = u64::from(self.width) * u64::from(self.height);
        check_available(pixels.saturating_mul(DECODED_BYTES), "decoding an image")
            .context(|| format!("input `{}`", self.input))?;
        contained(self.format, || match self.format {
            Format::Jpeg => jpeg::decode(&self.file, &self.limits),
            _ => format::decode(self.format, &self.file, &self.limits),
        })
        .and_then(convert)
        .context(|| format!("input `{}`", self.input))
    }
}

/// Runs a decoder and turns its panics into errors. libjpeg reports errors by unwinding; other decoders panic on files
/// that their authors did not foresee.
fn contained<T>(format: Format, decode: impl FnOnce() -> Result<T>) -> Result<T> {
    // A panic leaves nothing behind: the decoder is gone and the file is only read.
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| Err(format.damaged()))
}

#[cfg(test)]
mod tests;
