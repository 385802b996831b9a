//! Inputs of `StableDiffusionPipeline` and `LatentConsistencyModelPipeline`.

use serde_json::Value;

use super::{Element, InputRules, Size};
use diffusion_core::Result;

/// No inputs in addition to the prompts.
#[derive(Debug, Clone, PartialEq)]
pub struct Text2Img;

impl InputRules for Text2Img {
    fn size(&self, element: &Element<'_>) -> Result<Size> {
        element.size_from_args()
    }

    fn gen_args(&self, (height, width): Size) -> Vec<(&'static str, Value)> {
        vec![("height", height.into()), ("width", width.into())]
    }
}
