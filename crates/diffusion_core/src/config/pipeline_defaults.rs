//! Defaults and limits of each pipeline, from `config/pipelines.toml`, which is compiled in.

use std::collections::HashMap;

use serde::Deserialize;
use toml::{Table, Value};

use super::{ModelParameters, inputs_of};
use crate::error::{Error, Result};

const FILE: &str = include_str!("../../../../config/pipelines.toml");

/// A pipeline of diffusers, with the name of `_class_name` in `model_index.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
pub enum PipelineClass {
    /// Text to image.
    #[serde(rename = "StableDiffusionPipeline")]
    StableDiffusion,
    /// Text to image in a few steps. Computes like `StableDiffusionPipeline`, with a UNet that has the guidance
    /// scale as an input and an `LCMScheduler`; the defaults differ.
    #[serde(rename = "LatentConsistencyModelPipeline")]
    LatentConsistency,
    /// Image to image.
    #[serde(rename = "StableDiffusionImg2ImgPipeline")]
    Img2Img,
    /// Image to image that keeps the depth of the input.
    #[serde(rename = "StableDiffusionDepth2ImgPipeline")]
    Depth2Img,
    /// Repaints the white pixels of a mask.
    #[serde(rename = "StableDiffusionInpaintPipeline")]
    Inpaint,
    /// Enlarges an image four times.
    #[serde(rename = "StableDiffusionUpscalePipeline")]
    Upscale,
    /// Text to image, Stable Diffusion XL.
    #[serde(rename = "StableDiffusionXLPipeline")]
    StableDiffusionXl,
    /// Image to image, Stable Diffusion XL.
    #[serde(rename = "StableDiffusionXLImg2ImgPipeline")]
    Img2ImgXl,
    /// Repaints the white pixels of a mask, Stable Diffusion XL.
    #[serde(rename = "StableDiffusionXLInpaintPipeline")]
    InpaintXl,
}

impl PipelineClass {
    /// All pipeline classes.
    pub const ALL: [Self; 9] = [
        Self::StableDiffusion,
        Self::LatentConsistency,
        Self::Img2Img,
        Self::Depth2Img,
        Self::Inpaint,
        Self::Upscale,
        Self::StableDiffusionXl,
        Self::Img2ImgXl,
        Self::InpaintXl,
    ];

    /// Returns the class name in diffusers.
    pub fn name(self) -> &'static str {
        match self {
            Self::StableDiffusion => "StableDiffusionPipeline",
            Self::LatentConsistency => "LatentConsistencyModelPipeline",
            Self::Img2Img => "StableDiffusionImg2ImgPipeline",
            Self::Depth2Img => "StableDiffusionDepth2ImgPipeline",
            Self::Inpaint => "StableDiffusionInpaintPipeline",
            Self::Upscale => "StableDiffusionUpscalePipeline",
            Self::StableDiffusionXl => "StableDiffusionXLPipeline",
            Self::Img2ImgXl => "StableDiffusionXLImg2ImgPipeline",
            Self::InpaintXl => "StableDiffusionXLInpaintPipeline",
        }
    }

    /// Returns whether the pipeline is one of Stable Diffusion XL.
    pub fn is_xl(self) -> bool {
        matches!(self, Self::StableDiffusionXl | Self::Img2ImgXl | Self::InpaintXl)
    }

    /// Returns the class with this name in diffusers, if it is supported.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }
}

impl std::fmt::Display for PipelineClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// File format of an image, without its quality.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Lossless, with the parameters of the image in a text chunk.
    Png,
    /// Lossy, at most 65,535 pixels a side.
    Jpeg,
    /// Lossy, at most 16,383 pixels a side.
    Webp,
}

impl Format {
    /// All formats with their names in `gen_args`.
    pub const ALL: [(&'static str, Self); 3] = [("png", Self::Png), ("jpeg", Self::Jpeg), ("webp", Self::Webp)];

    /// Returns the name in `gen_args`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Webp => "webp",
        }
    }

    /// Returns the largest height or width of an image in this format (ISO/IEC 15948, ITU-T T.81, RFC 9649).
    pub fn max_side(self) -> u32 {
        match self {
            Self::Png => i32::MAX as u32,
            Self::Jpeg => u16::MAX as u32,
            Self::Webp => (1 << 14) - 1,
        }
    }
}

/// Arguments that a request does not name.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// Denoising steps.
    pub num_inference_steps: u32,
    /// Guidance weight; guidance is on above 1.0.
    pub guidance_scale: f64,
    /// Images made from one prompt.
    pub num_images_per_prompt: u32,
    /// DDIM's noise weight, 0 to 1.
    pub eta: f64,
    /// Share of the rescaled noise prediction, 0 to 1; 0 where the pipeline does not use it.
    pub guidance_rescale: f64,
    /// How much the input image is changed, 0 to 1, where the pipeline uses it.
    pub strength: Option<f64>,
    /// Noise added to the image that is enlarged, where the pipeline uses it.
    pub noise_level: Option<u32>,
    /// Whether pixels outside the mask are copied from the input, where the pipeline uses it.
    pub keep_unmasked: Option<bool>,
    /// File format of the images.
    pub output_format: Format,
    /// JPEG quality, 1 to 100.
    pub jpeg_quality: u8,
    /// Quality of a lossy WebP, 1 to 100.
    pub webp_quality: u8,
}

/// What no request may exceed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Most denoising steps.
    pub max_steps: u32,
    /// Most pixels of one image, height times width; for the upscaler, most pixels of one tile.
    pub max_pixels: u64,
    /// Largest batch size of one UNet call.
    pub max_unet_batch_size: u32,
    /// Most work of one request: UNet batch size times pixels times steps. No limit if absent.
    pub max_work: Option<u64>,
    /// Longest prompt, in bytes.
    pub max_prompt_bytes: usize,
    /// Longest `gen_args`, in bytes.
    pub max_gen_args_bytes: usize,
    /// Longest input image, in bytes of base64, where the pipeline requires one.
    pub max_image_bytes: Option<usize>,
    /// Most pixels of an input image, height times width, where the pipeline requires one.
    pub max_image_pixels: Option<u64>,
}

impl Limits {
    /// Replaces the limits that the model's `config.pbtxt` sets.
    #[must_use]
    pub fn with_parameters(mut self, parameters: &ModelParameters) -> Self {
        self.max_steps = parameters.max_steps.unwrap_or(self.max_steps);
        self.max_pixels = parameters.max_pixels.unwrap_or(self.max_pixels);
        self.max_unet_batch_size = parameters.max_unet_batch_size.unwrap_or(self.max_unet_batch_size);
        self.max_work = parameters.max_work.or(self.max_work);
        self
    }
}

/// The serving defaults and limits of one pipeline class.
#[derive(Debug, Clone, PartialEq)]
pub struct PipelineDefaults {
    /// The pipeline.
    pub pipeline: PipelineClass,
    /// Arguments that a request does not name.
    pub defaults: Defaults,
    /// What no request may exceed.
    pub limits: Limits,
}

impl PipelineDefaults {
    /// Returns the compiled-in defaults of a pipeline class.
    ///
    /// # Errors
    /// `Internal` for a damaged file, which the tests rule out.
    pub fn of(class: PipelineClass) -> Result<Self> {
        Self::parse(FILE, class).map_err(|error| Error::internal(format!("config/pipelines.toml: {error}")))
    }

    fn parse(text: &str, class: PipelineClass) -> std::result::Result<Self, toml::de::Error> {
        let mut file: File = toml::from_str(text)?;
        let Tables {
            mut defaults,
            mut limits,
        } = file.common;
        if inputs_of(class)
            .iter()
            .any(|input| input.name == "image" && !input.optional)
        {
            limits.extend(file.image.limits);
        }
        let own = file.pipelines.remove(&class).unwrap_or_default();
        defaults.extend(own.defaults);
        limits.extend(own.limits);
        Ok(Self {
            pipeline: class,
            defaults: Value::Table(defaults).try_into()?,
            limits: Value::Table(limits).try_into()?,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    common: Tables,
    /// For pipelines that require an input image.
    image: Tables,
    pipelines: HashMap<PipelineClass, Tables>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Tables {
    defaults: Table,
    limits: Table,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn defaults_of_text_to_image_are_those_of_diffusers() {
        let file = PipelineDefaults::of(PipelineClass::StableDiffusion).unwrap();
        assert_eq!(
            file.defaults,
            Defaults {
                num_inference_steps: 50,
                guidance_scale: 7.5,
                num_images_per_prompt: 1,
                eta: 0.0,
                guidance_rescale: 0.0,
                strength: None,
                noise_level: None,
                keep_unmasked: None,
                output_format: Format::Png,
                jpeg_quality: 75,
                webp_quality: 80,
            }
        );
        assert_eq!(
            file.limits,
            Limits {
                max_steps: 1000,
                max_pixels: 1 << 22,
                max_unet_batch_size: 16,
                max_work: None,
                max_prompt_bytes: 64 << 10,
                max_gen_args_bytes: 64 << 10,
                max_image_bytes: None,
                max_image_pixels: None,
            }
        );
    }

    #[test]
    fn defaults_of_each_class_are_those_of_diffusers() {
        // The defaults of diffusers' `__call__`: steps, guidance, strength, noise level.
        let expected = [
            (PipelineClass::StableDiffusion, 50, 7.5, None, None),
            (PipelineClass::LatentConsistency, 4, 8.5, None, None),
            (PipelineClass::Img2Img, 50, 7.5, Some(0.8), None),
            (PipelineClass::Depth2Img, 50, 7.5, Some(0.8), None),
            (PipelineClass::Inpaint, 50, 7.5, Some(1.0), None),
            (PipelineClass::Upscale, 75, 9.0, None, Some(20)),
            (PipelineClass::StableDiffusionXl, 50, 5.0, None, None),
            (PipelineClass::Img2ImgXl, 50, 5.0, Some(0.3), None),
            (PipelineClass::InpaintXl, 50, 7.5, Some(0.9999), None),
        ];
        assert_eq!(expected.len(), PipelineClass::ALL.len());
        for (class, steps, guidance, strength, noise_level) in expected {
            let PipelineDefaults { defaults, limits, .. } = PipelineDefaults::of(class).unwrap();
            assert_eq!(defaults.num_inference_steps, steps, "{class}");
            assert_eq!(defaults.guidance_scale, guidance, "{class}");
            assert_eq!(defaults.strength, strength, "{class}");
            assert_eq!(defaults.noise_level, noise_level, "{class}");
            let takes_image = inputs_of(class)
                .iter()
                .any(|input| input.name == "image" && !input.optional);
            assert_eq!(limits.max_image_bytes.is_some(), takes_image, "{class}");
            assert_eq!(limits.max_image_pixels.is_some(), takes_image, "{class}");
        }
    }

    #[test]
    fn file_with_an_unknown_key_is_refused() {
        for (from, to) in [
            ("max_unet_batch_size =", "max_row ="),
            ("strength =", "strenght ="),
            ("StableDiffusionInpaintPipeline.", "FluxPipeline."),
            ("[image.limits]", "[image.limit]"),
            ("[common.defaults]", "more = 1\n[common.defaults]"),
        ] {
            let broken = FILE.replace(from, to);
            assert_ne!(broken, FILE, "{from}");
            let refused = |class| PipelineDefaults::parse(&broken, class).is_err();
            assert!(PipelineClass::ALL.into_iter().any(refused), "{to}");
        }
    }

    #[test]
    fn class_names_are_parsed() {
        for class in PipelineClass::ALL {
            assert_eq!(PipelineClass::from_name(class.name()), Some(class));
            let parsed: PipelineClass = serde_json::from_value(class.name().into()).unwrap();
            assert_eq!(parsed, class);
        }
        assert_eq!(PipelineClass::from_name("FluxPipeline"), None);
    }

    #[test]
    fn format_names_are_parsed() {
        for (name, format) in Format::ALL {
            assert_eq!(format.name(), name);
            let parsed: Format = serde_json::from_value(name.into()).unwrap();
            assert_eq!(parsed, format);
        }
    }

    #[test]
    fn model_parameters_replace_limits() {
        let file = PipelineDefaults::of(PipelineClass::StableDiffusion).unwrap();
        let parameters = ModelParameters {
            max_unet_batch_size: Some(4),
            max_steps: Some(20),
            ..ModelParameters::default()
        };
        let limits = file.limits.clone().with_parameters(&parameters);
        assert_eq!((limits.max_unet_batch_size, limits.max_steps), (4, 20));
        assert_eq!(limits.max_pixels, file.limits.max_pixels);
    }
}
