//! Inputs of `StableDiffusionUpscalePipeline`.

use serde_json::Value;

use super::{Element, InputRules, Size};
use diffusion_core::{Error, Result};
use diffusion_image::EncodedImage;

/// An image that is enlarged.
#[derive(Debug, Clone, PartialEq)]
pub struct Upscale {
    /// The image, of any size.
    pub image: EncodedImage,
    /// Timestep of the noise that is added to the image.
    pub noise_level: u32,
}

impl Upscale {
    pub(super) fn read(element: &Element<'_>) -> Result<Self> {
        let image = element.image("image", element.inputs.image)?;
        let default = element.rules.defaults().noise_level.unwrap_or(0);
        let noise_level = element.args.noise_level.unwrap_or(default.into());
        let max = element.model.max_noise_level;
        match u32::try_from(noise_level) {
            Ok(noise_level) if noise_level <= max => Ok(Self { image, noise_level }),
            _ => Err(Error::invalid_argument(format!(
                "gen_args: `noise_level` {noise_level} is more than the model's max_noise_level {max}"
            ))),
        }
    }
}

impl InputRules for Upscale {
    /// The input image is limited, not the result: a large result is generated in tiles.
    fn size(&self, element: &Element<'_>) -> Result<Size> {
        let (height, width) = element.size_from_image(&self.image)?;
        let factor = element.model.vae_scale_factor;
        Ok((height * factor, width * factor))
    }

    fn gen_args(&self, _: Size) -> Vec<(&'static str, Value)> {
        vec![("noise_level", self.noise_level.into())]
    }
}
