//! The image inputs of a request: one struct per pipeline, with everything in which the requests of pipelines differ.
//!
//! A new pipeline is one file, one variant and one line in each of the two matches below.

mod depth2img;
mod img2img;
mod inpaint;
mod text2img;
mod upscale;

use serde_json::Value;

use crate::gen_args::GenArgs;
use crate::validate::{ElementInputs, ModelInfo, PipelineRules};
use diffusion_core::config::PipelineClass;
use diffusion_core::{Error, Result};
use diffusion_image::{EncodedImage, ImageLimits};

pub use depth2img::Depth2Img;
pub use img2img::Img2Img;
pub use inpaint::Inpaint;
pub use text2img::Text2Img;
pub use upscale::Upscale;

/// Longest side of an input image, in pixels. A longer image within the pixel limit is too thin for any use.
const MAX_IMAGE_SIDE: u32 = 16_384;

/// The inputs of a pipeline in addition to the prompts. Images are checked up to their headers.
#[derive(Debug, Clone, PartialEq)]
pub enum PipelineInputs {
    /// Generates from noise.
    Text2Img(Text2Img),
    /// Changes an image.
    Img2Img(Img2Img),
    /// Changes an image and keeps its depth.
    Depth2Img(Depth2Img),
    /// Repaints a part of an image.
    Inpaint(Inpaint),
    /// Enlarges an image.
    Upscale(Upscale),
}

impl PipelineInputs {
    /// Reads the inputs that the pipeline expects.
    pub(crate) fn read(element: &Element<'_>) -> Result<Self> {
        Ok(match element.rules.class() {
            PipelineClass::StableDiffusion | PipelineClass::LatentConsistency => Self::Text2Img(Text2Img),
            PipelineClass::Img2Img => Self::Img2Img(Img2Img::read(element)?),
            PipelineClass::Depth2Img => Self::Depth2Img(Depth2Img::read(element)?),
            PipelineClass::Inpaint => Self::Inpaint(Inpaint::read(element)?),
            PipelineClass::Upscale => Self::Upscale(Upscale::read(element)?),
        })
    }

    /// Returns what differs between pipelines.
    pub(crate) fn rules(&self) -> &dyn InputRules {
        match self {
            Self::Text2Img(inputs) => inputs,
            Self::Img2Img(inputs) => inputs,
            Self::Depth2Img(inputs) => inputs,
            Self::Inpaint(inputs) => inputs,
            Self::Upscale(inputs) => inputs,
        }
    }
}

/// Height and width in pixels.
pub(crate) type Size = (u32, u32);

/// What differs between the requests of pipelines.
pub(crate) trait InputRules {
    /// Decides the size of what is generated.
    ///
    /// # Errors
    /// InvalidArgument that names the input or the key, and the limit.
    fn size(&self, element: &Element<'_>) -> Result<Size>;

    /// Returns the size of the images of the response; `generated` is the result of [`InputRules::size`].
    fn output_size(&self, generated: Size) -> Size {
        generated
    }

    /// Returns how far the image is changed, where the pipeline has a `strength`.
    fn strength(&self) -> Option<f64> {
        None
    }

    /// Returns the keys of `gen_args` that belong to the inputs, with their values.
    fn gen_args(&self, generated: Size) -> Vec<(&'static str, Value)>;
}

/// One batch element with what its inputs are read by.
pub(crate) struct Element<'a> {
    pub inputs: &'a ElementInputs<'a>,
    pub args: &'a GenArgs,
    pub rules: &'a PipelineRules,
    pub model: &'a ModelInfo,
}

impl Element<'_> {
    /// Reads the image `text` of input `name`.
    fn image(&self, name: &'static str, text: Option<&[u8]>) -> Result<EncodedImage> {
        self.optional_image(name, text)?.ok_or_else(|| {
            Error::invalid_argument(format!("input `{name}` is missing; {} requires it", self.rules.class()))
        })
    }

    fn optional_image(&self, name: &'static str, text: Option<&[u8]>) -> Result<Option<EncodedImage>> {
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

    fn strength(&self) -> f64 {
        self.args.strength.or(self.rules.defaults().strength).unwrap_or(1.0)
    }

    /// Takes the size from the arguments. Each side has its own default, as in diffusers 0.16: current diffusers uses
    /// both defaults if one side is missing, and drops the side that is given.
    fn size_from_args(&self) -> Result<Size> {
        let max_pixels = self.rules.limits().max_pixels;
        let height = self.args.height.unwrap_or(self.model.default_height.into());
        let width = self.args.width.unwrap_or(self.model.default_width.into());
        let fits = height.checked_mul(width).is_some_and(|area| area <= max_pixels);
        match (u32::try_from(height), u32::try_from(width)) {
            (Ok(height), Ok(width)) if fits => Ok((height, width)),
            _ => Err(Error::invalid_argument(format!(
                "gen_args: `height` {height} times `width` {width} is more than max_pixels {max_pixels}"
            ))),
        }
    }

    /// Takes the size from `image`, rounded down to what the VAE can encode.
    fn size_from_image(&self, image: &EncodedImage) -> Result<Size> {
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
    fn limited_size_from_image(&self, image: &EncodedImage) -> Result<Size> {
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
