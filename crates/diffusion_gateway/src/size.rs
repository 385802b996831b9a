//! Sizes of images in requests.

use crate::error::{ApiError, Result};
use crate::images::{MAX_PIXELS, MAX_SIDE};

/// Width and height in pixels, within the limits of an image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Size {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
}

impl Size {
    /// Checks a size. The backend checks the limits of the model.
    ///
    /// # Errors
    /// The size is 0 or beyond the limits; the error is about `param`.
    pub fn new(param: &'static str, width: u32, height: u32) -> Result<Self> {
        let pixels = u64::from(width) * u64::from(height);
        if width == 0 || height == 0 || width.max(height) > MAX_SIDE || pixels > MAX_PIXELS {
            let message = format!("expected 1 to {MAX_SIDE} pixels a side and at most {MAX_PIXELS} pixels");
            return Err(ApiError::argument(param, message));
        }
        Ok(Self { width, height })
    }

    /// Reads `WIDTHxHEIGHT`; `auto` is no size.
    ///
    /// # Errors
    /// The text is neither.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        if text == "auto" {
            return Ok(None);
        }
        let sides = text.split_once('x');
        let sides = sides.and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
        let (width, height) =
            sides.ok_or_else(|| ApiError::argument("size", "expected auto or WIDTHxHEIGHT, such as 512x512"))?;
        Self::new("size", width, height).map(Some)
    }

    /// Returns the size of an image file, rounded down to multiples of 8.
    ///
    /// # Errors
    /// The text is no image in base64 within the limits.
    pub fn of_image(image: &str) -> Result<Self> {
        let (width, height) = crate::images::size_of(image)?;
        Self::new("image", (width / 8) * 8, (height / 8) * 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_auto_or_two_numbers() {
        assert_eq!(Size::parse("auto"), Ok(None));
        let size = Size {
            width: 512,
            height: 768,
        };
        assert_eq!(Size::parse("512x768"), Ok(Some(size)));
        let long = format!("{0}x{0}", "9".repeat(1000));
        for wrong in [
            "",
            "x",
            "512",
            "512x",
            "0x8",
            "-8x8",
            "8x8x8",
            "5 x 5",
            "20000x8",
            "16384x16384",
            &long,
        ] {
            let error = Size::parse(wrong).map_err(|error| (error.status, error.param));
            assert_eq!(error, Err((400, Some("size"))), "{wrong}");
        }
    }
}
