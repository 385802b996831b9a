//! Inputs of `StableDiffusionDepth2ImgPipeline`.

use serde_json::Value;

use super::{Element, InputRules, Size};
use diffusion_core::Result;
use diffusion_image::EncodedImage;

/// An image that is changed and keeps its depth.
#[derive(Debug, Clone, PartialEq)]
pub struct Depth2Img {
    /// The image, of any size.
    pub image: EncodedImage,
    /// The depth to keep, of any size; `None` means that the model estimates the depth of `image`.
    pub depth_map: Option<EncodedImage>,
    /// How far the image is changed, above 0 and at most 1; leaves at least one step.
    pub strength: f64,
}

impl Depth2Img {
    pub(super) fn read(element: &Element<'_>) -> Result<Self> {
        Ok(Self {
            image: element.image("image", element.inputs.image)?,
            depth_map: element.optional_image("depth_map", element.inputs.depth_map)?,
            strength: element.strength(),
        })
    }
}

impl InputRules for Depth2Img {
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
