//! Inputs of `StableDiffusionImg2ImgPipeline`.

use serde_json::Value;

use super::{Element, InputRules, Size};
use diffusion_core::Result;
use diffusion_image::EncodedImage;

/// An image that is changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Img2Img {
    /// The image, of any size.
    pub image: EncodedImage,
    /// How far the image is changed, above 0 and at most 1; leaves at least one step.
    pub strength: f64,
}

impl Img2Img {
    pub(super) fn read(element: &Element<'_>) -> Result<Self> {
        Ok(Self {
            image: element.image("image", element.inputs.image)?,
            strength: element.strength(),
        })
    }
}

impl InputRules for Img2Img {
    fn size(&self, element: &Element<'_>) -> Result<Size> {
        element.limited_size_from_image(&self.image)
    }

    fn strength(&self) -> Option<f64> {
        Some(self.strength)
    }

    fn gen_args(&self, _: Size) -> Vec<(&'static str, Value)> {
        vec![("strength", self.strength.into())]
    }
}
