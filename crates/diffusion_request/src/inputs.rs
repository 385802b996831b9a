//! The inputs of a request: one struct per pipeline, with everything in which the requests of pipelines differ.
//!
//! A new pipeline is one struct, one variant and one line in each of the two matches below.

mod element;

use serde_json::Value;

use diffusion_core::config::PipelineClass;
use diffusion_core::{Error, Result};
use diffusion_image::EncodedImage;

pub(crate) use element::Element;

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
            PipelineClass::StableDiffusion | PipelineClass::LatentConsistency | PipelineClass::StableDiffusionXl => {
                Self::Text2Img(Text2Img)
            }
            PipelineClass::Img2Img | PipelineClass::Img2ImgXl => Self::Img2Img(Img2Img::read(element)?),
            PipelineClass::Depth2Img => Self::Depth2Img(Depth2Img::read(element)?),
            PipelineClass::Inpaint | PipelineClass::InpaintXl => Self::Inpaint(Inpaint::read(element)?),
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

    /// Returns the input images.
    fn images(&self) -> Vec<&EncodedImage> {
        Vec::new()
    }

    /// Returns the keys of `gen_args` that belong to the inputs, with their values.
    fn gen_args(&self, _generated: Size) -> Vec<(&'static str, Value)> {
        Vec::from_iter(self.strength().map(|strength| ("strength", strength.into())))
    }
}

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

/// An image that is changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Img2Img {
    /// The image, of any size.
    pub image: EncodedImage,
    /// How far the image is changed, above 0 and at most 1; leaves at least one step.
    pub strength: f64,
}

impl Img2Img {
    fn read(element: &Element<'_>) -> Result<Self> {
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

    fn images(&self) -> Vec<&EncodedImage> {
        vec![&self.image]
    }

    fn strength(&self) -> Option<f64> {
        Some(self.strength)
    }
}

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
    fn read(element: &Element<'_>) -> Result<Self> {
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

    fn images(&self) -> Vec<&EncodedImage> {
        std::iter::once(&self.image).chain(&self.depth_map).collect()
    }

    fn strength(&self) -> Option<f64> {
        Some(self.strength)
    }
}

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
    fn read(element: &Element<'_>) -> Result<Self> {
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

    fn images(&self) -> Vec<&EncodedImage> {
        vec![&self.image, &self.mask_image]
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

/// An image that is enlarged.
#[derive(Debug, Clone, PartialEq)]
pub struct Upscale {
    /// The image, of any size.
    pub image: EncodedImage,
    /// Timestep of the noise that is added to the image.
    pub noise_level: u32,
}

impl Upscale {
    fn read(element: &Element<'_>) -> Result<Self> {
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

    fn images(&self) -> Vec<&EncodedImage> {
        vec![&self.image]
    }

    fn gen_args(&self, _: Size) -> Vec<(&'static str, Value)> {
        vec![("noise_level", self.noise_level.into())]
    }
}
