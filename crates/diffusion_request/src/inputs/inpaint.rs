//! Inputs of `StableDiffusionInpaintPipeline`.

use serde_json::Value;

use super::{Element, InputRules, Size};
use diffusion_core::{Error, Result};
use diffusion_image::EncodedImage;

/// An image of which a part is repainted.
#[derive(Debug, Clone, PartialEq)]
pub struct Inpaint {
    /// The image, of any size.
    pub image: EncodedImage,
    /// White is repainted, black is kept; of any size, and of the size of `image` with `padding_mask_crop`.
    pub mask_image: EncodedImage,
    /// How far the repainted part is changed, above 0 and at most 1; leaves at least one step.
    pub strength: f64,
    /// Margin in pixels around the masked part; the pipeline sees only the masked part and the margin.
    pub padding_mask_crop: Option<u32>,
    /// Whether the kept pixels are copied from `image`.
    pub keep_unmasked: bool,
}

impl Inpaint {
    pub(super) fn read(element: &Element<'_>) -> Result<Self> {
        let image = element.image("image", element.inputs.image)?;
        let mask_image = element.image("mask_image", element.inputs.mask_image)?;
        let padding_mask_crop = element.args.padding_mask_crop;
        let size = |image: &EncodedImage| (image.width(), image.height());
        if padding_mask_crop.is_some() && size(&image) != size(&mask_image) {
            return Err(Error::invalid_argument(format!(
                "`padding_mask_crop` requires inputs `image` and `mask_image` of the same size, got {}x{} and {}x{}",
                image.width(),
                image.height(),
                mask_image.width(),
                mask_image.height()
            )));
        }
        let keep_unmasked = element.args.keep_unmasked.or(element.rules.defaults().keep_unmasked);
        Ok(Self {
            image,
            mask_image,
            strength: element.strength(),
            padding_mask_crop: padding_mask_crop.and_then(|pad| u32::try_from(pad).ok()),
            keep_unmasked: keep_unmasked.unwrap_or(true),
        })
    }
}

impl InputRules for Inpaint {
    fn size(&self, element: &Element<'_>) -> Result<Size> {
        element.size_from_args()
    }

    fn output_size(&self, generated: Size) -> Size {
        // The crop is pasted into the whole image.
        match self.padding_mask_crop {
            Some(_) => (self.image.height(), self.image.width()),
            None => generated,
        }
    }

    fn strength(&self) -> Option<f64> {
        Some(self.strength)
    }

    fn gen_args(&self, (height, width): Size) -> Vec<(&'static str, Value)> {
        let mut args: Vec<(&str, Value)> = vec![
            ("height", height.into()),
            ("width", width.into()),
            ("strength", self.strength.into()),
            ("keep_unmasked", self.keep_unmasked.into()),
        ];
        args.extend(self.padding_mask_crop.map(|pad| ("padding_mask_crop", pad.into())));
        args
    }
}
