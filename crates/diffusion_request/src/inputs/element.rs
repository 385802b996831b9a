//! Reading of the inputs of one batch element.

use super::Size;
use crate::gen_args::GenArgs;
use crate::validate::{ElementInputs, ModelInfo, PipelineRules};
use diffusion_core::{Error, Result};
use diffusion_image::{EncodedImage, ImageLimits};

/// Longest side of an input image, in pixels. A longer image within the pixel limit is too thin for any use.
const MAX_IMAGE_SIDE: u32 = 16_384;

/// One batch element with what its inputs are read by.
pub struct Element<'a> {
    pub inputs: &'a ElementInputs<'a>,
    pub args: &'a GenArgs,
    pub rules: &'a PipelineRules,
    pub model: &'a ModelInfo,
}

impl Element<'_> {
    /// Reads the image `text` of input `name`.
    pub fn image(&self, name: &'static str, text: Option<&[u8]>) -> Result<EncodedImage> {
        self.optional_image(name, text)?.ok_or_else(|| {
            Error::invalid_argument(format!("input `{name}` is missing; {} requires it", self.rules.class()))
        })
    }

    pub fn optional_image(&self, name: &'static str, text: Option<&[u8]>) -> Result<Option<EncodedImage>> {
        let limits = self.rules.limits();
        let (Some(max_base64_bytes), Some(max_pixels)) = (limits.max_image_bytes, limits.max_image_pixels) else {
            return Err(Error::internal(format!(
                "{} has no limits for images",
                self.rules.class()
            )));
        };
        let limits = ImageLimits {
            max_base64_bytes,
            max_pixels,
            max_side: MAX_IMAGE_SIDE,
        };
        text.map(|text| EncodedImage::new(name, text, &limits)).transpose()
    }

    pub fn strength(&self) -> f64 {
        self.args.strength.or(self.rules.defaults().strength).unwrap_or(1.0)
    }

    /// Takes the size from the arguments. Each side has its own default, as in diffusers 0.16: current diffusers uses
    /// both defaults if one side is missing, and drops the side that is given.
    pub fn size_from_args(&self) -> Result<Size> {
        let max_pixels = self.rules.limits().max_pixels;
        let factor = u64::from(self.model.vae_scale_factor);
        let down = |side: u64| side - side % factor;
        let height = down(self.args.height.unwrap_or(self.model.default_height.into()));
        let width = down(self.args.width.unwrap_or(self.model.default_width.into()));
        if height == 0 || width == 0 {
            return Err(Error::invalid_argument(format!(
                "gen_args: `height` and `width` must be at least {factor}"
            )));
        }
        let fits = height.checked_mul(width).is_some_and(|area| area <= max_pixels);
        match (u32::try_from(height), u32::try_from(width)) {
            (Ok(height), Ok(width)) if fits => Ok((height, width)),
            _ => Err(Error::invalid_argument(format!(
                "gen_args: `height` {height} times `width` {width} is more than max_pixels {max_pixels}"
            ))),
        }
    }

    /// Takes the size from `image`, rounded down to what the VAE can encode.
    pub fn size_from_image(&self, image: &EncodedImage) -> Result<Size> {
        let factor = self.model.vae_scale_factor;
        let down = |side: u32| side - side % factor;
        match (down(image.height()), down(image.width())) {
            (0, _) | (_, 0) => Err(Error::invalid_argument(format!(
                "input `image` must be at least {factor} pixels high and wide, got {}x{}",
                image.width(),
                image.height()
            ))),
            size => Ok(size),
        }
    }

    /// Takes the size from `image` and checks it against `max_pixels`.
    pub fn limited_size_from_image(&self, image: &EncodedImage) -> Result<Size> {
        let (height, width) = self.size_from_image(image)?;
        let max_pixels = self.rules.limits().max_pixels;
        if u64::from(height) * u64::from(width) > max_pixels {
            return Err(Error::invalid_argument(format!(
                "input `image`: {width}x{height} pixels are more than max_pixels {max_pixels}"
            )));
        }
        Ok((height, width))
    }
}
