//! Images out of the input tensors: base64 text of a PNG, JPEG, WebP, BMP, GIF or TIFF.
//!
//! Everything in here was sent by a stranger. What costs little is checked first: the length of the text, the base64, the
//! format by its first bytes, the size in the header, and only then are pixels decoded, by decoders that have limits of
//! their own. Errors say what is wrong and which limit it broke; they never quote the text or the file.
//!
//! An image is what `PIL.ImageOps.exif_transpose(PIL.Image.open(file)).convert("RGB")` makes of it, to the byte, but for
//! these, where Pillow's answer helps nobody:
//! - Pixels that are transparent are laid over white. Pillow shows the colour that is hidden in them.
//! - Mask pixels of 16 bits keep their upper 8, as those of a colour image do. Pillow makes all above 255 white.
//! - A GIF's first image may cover a part of the canvas. The rest is white.
//!
//! Colour profiles are ignored, as Pillow does. Of Pillow's TIFFs those with a palette, with JPEG inside, with pixels in floating
//! point and in colour spaces beside RGB and CMYK are refused.

mod base64_text;
mod format;
mod jpeg;
mod pixels;
mod webp;

use std::panic::{AssertUnwindSafe, catch_unwind};

use image::DynamicImage;

use self::format::Format;
use super::depth_map::DepthMap;
use super::encode::RgbImage;
use super::mask::Mask;
use diffusion_core::{Error, Result};

/// What an input image may measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the base64 text, with the prefix of a `data:` URL and with white space.
    pub max_base64_bytes: usize,
    /// Width times height in pixels.
    pub max_pixels: u64,
    /// Width, and height, in pixels.
    pub max_side: u32,
}

impl Limits {
    /// Whether an image of this size may be decoded.
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

/// The colour image that `text` holds. The caller names the input with [`Error::context`].
///
/// # Errors
/// InvalidArgument for a text that is too long, empty or not base64, for a file of another format, a damaged or truncated
/// one, one of a kind that is not supported, and for an image beyond the limits.
pub fn rgb(text: &[u8], limits: &Limits) -> Result<RgbImage> {
    pixels::rgb(&decode(text, limits)?)
}

/// The image that `text` holds as a mask, for a mask: [`rgb`], then Pillow's `convert("L")`.
///
/// # Errors
/// Those of [`rgb`].
pub fn mask(text: &[u8], limits: &Limits) -> Result<Mask> {
    Ok(Mask::from_rgb(&rgb(text, limits)?))
}

/// The depth map that `text` holds: a grayscale image of 8 or 16 bits. A file whose format cannot say "grayscale" passes if its
/// pixels are grayscale and opaque.
///
/// # Errors
/// Those of [`rgb`], and InvalidArgument for an image with colours or with transparent pixels.
pub fn depth_map(text: &[u8], limits: &Limits) -> Result<DepthMap> {
    pixels::depth_map(&decode(text, limits)?)
}

/// From the text to pixels as the file has them, turned upright.
fn decode(text: &[u8], limits: &Limits) -> Result<DynamicImage> {
    let file = base64_text::decode(text, limits.max_base64_bytes)?;
    let format = Format::of(&file)?;
    // libjpeg's errors arrive by unwinding, and a decoder that panics has been given a file that its authors did not think
    // of. Nothing outlives the closure but what it returns.
    catch_unwind(AssertUnwindSafe(|| match format {
        Format::Jpeg => jpeg::decode(&file, limits),
        _ => format::decode(format, &file, limits),
    }))
    .unwrap_or_else(|_| Err(format.damaged()))
}

#[cfg(test)]
mod tests;
