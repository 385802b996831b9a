//! Defaults and limits of each pipeline, read from `config/pipelines.toml`, which is compiled in.

use serde::Deserialize;
use toml::{Table, Value};

use super::ModelParameters;
use crate::error::{Error, Result};

const PIPELINES: &str = include_str!("../../../../config/pipelines.toml");

/// A diffusers pipeline: `_class_name` in `model_index.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
pub enum PipelineClass {
    /// Text to image.
    #[serde(rename = "StableDiffusionPipeline")]
    StableDiffusion,
    /// Text to image in a few steps: `StableDiffusionPipeline` with an `LCMScheduler`, a UNet that takes the guidance
    /// scale as an input, and other defaults.
    #[serde(rename = "LatentConsistencyModelPipeline")]
    LatentConsistency,
    /// Image to image.
    #[serde(rename = "StableDiffusionImg2ImgPipeline")]
    Img2Img,
    /// Image to image, guided by the depth of the input.
    #[serde(rename = "StableDiffusionDepth2ImgPipeline")]
    Depth2Img,
    /// Repaints the white part of a mask.
    #[serde(rename = "StableDiffusionInpaintPipeline")]
    Inpaint,
    /// Enlarges an image four times.
    #[serde(rename = "StableDiffusionUpscalePipeline")]
    Upscale,
}

impl PipelineClass {
    /// All pipeline classes.
    pub const ALL: [Self; 6] = [
        Self::StableDiffusion,
        Self::LatentConsistency,
        Self::Img2Img,
        Self::Depth2Img,
        Self::Inpaint,
        Self::Upscale,
    ];

    /// Returns diffusers' name of the class.
    pub fn name(self) -> &'static str {
        match self {
            Self::StableDiffusion => "StableDiffusionPipeline",
            Self::LatentConsistency => "LatentConsistencyModelPipeline",
            Self::Img2Img => "StableDiffusionImg2ImgPipeline",
            Self::Depth2Img => "StableDiffusionDepth2ImgPipeline",
            Self::Inpaint => "StableDiffusionInpaintPipeline",
            Self::Upscale => "StableDiffusionUpscalePipeline",
        }
    }

    /// Finds a class by diffusers' name.
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
    /// Lossless, with the parameters of the request in a text chunk.
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

    /// Returns the largest height or width of the format in pixels (ISO/IEC 15948, ITU-T T.81, RFC 9649).
    pub fn max_side(self) -> u32 {
        match self {
            Self::Png => i32::MAX as u32,
            Self::Jpeg => u16::MAX as u32,
            Self::Webp => (1 << 14) - 1,
        }
    }
}

/// Arguments of a request that does not set them.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// Denoising steps.
    pub num_inference_steps: u32,
    /// Guidance weight; guidance is on above 1.0.
    pub guidance_scale: f64,
    /// Images per prompt.
    pub num_images_per_prompt: u32,
    /// Noise added by DDIM and TCD, 0 to 1.
    pub eta: f64,
    /// Share of the rescaled noise prediction, 0 to 1; 0 if the pipeline has no such argument.
    #[serde(default)]
    pub guidance_rescale: f64,
    /// Share of the denoising steps that are run, 0 to 1, if the pipeline has the argument.
    pub strength: Option<f64>,
    /// Noise added to the input image, as a timestep, if the pipeline has the argument.
    pub noise_level: Option<u32>,
    /// Whether pixels outside the mask are copied from the input, if the pipeline has the argument.
    pub keep_unmasked: Option<bool>,
    /// File format of the images.
    pub output_format: Format,
    /// JPEG quality, 1 to 100.
    pub jpeg_quality: u8,
    /// Quality of a lossy WebP, 1 to 100.
    pub webp_quality: u8,
}

/// Limits of a request.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Denoising steps.
    pub max_steps: u32,
    /// Height times width of an image; for the upscaler, of one tile.
    pub max_pixels: u64,
    /// Batch entries of one UNet call.
    pub max_unet_batch_size: u32,
    /// Bytes of a prompt.
    pub max_prompt_bytes: usize,
    /// Bytes of `gen_args`.
    pub max_gen_args_bytes: usize,
    /// Base64 bytes of an input image, if the pipeline takes one.
    pub max_image_bytes: Option<usize>,
    /// Height times width of an input image, if the pipeline takes one.
    pub max_image_pixels: Option<u64>,
}

impl Limits {
    /// Replaces the limits that the model's `config.pbtxt` sets.
    #[must_use]
    pub fn with_parameters(mut self, parameters: &ModelParameters) -> Self {
        self.max_steps = parameters.max_steps.unwrap_or(self.max_steps);
        self.max_pixels = parameters.max_pixels.unwrap_or(self.max_pixels);
        self.max_unet_batch_size = parameters.max_unet_batch_size.unwrap_or(self.max_unet_batch_size);
        self
    }
}

/// The defaults and limits of one pipeline class.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineDefaults {
    /// The pipeline class.
    pub pipeline: PipelineClass,
    /// Arguments of a request that does not set them.
    pub defaults: Defaults,
    /// Limits of a request.
    pub limits: Limits,
}

impl PipelineDefaults {
    /// Returns the compiled-in defaults and limits of a pipeline class.
    ///
    /// # Errors
    /// `Internal` if the compiled-in file is invalid, which the tests rule out.
    pub fn of(class: PipelineClass) -> Result<Self> {
        Self::parse(PIPELINES, class)
            .map_err(|error| Error::internal(format!("config/pipelines.toml: {class}: {error}")))
    }

    /// Merges the class's table into `common` and reads the result.
    fn parse(text: &str, class: PipelineClass) -> std::result::Result<Self, toml::de::Error> {
        let mut file: Table = text.parse()?;
        let mut take = |name: &str| match file.remove(name) {
            Some(Value::Table(table)) => table,
            _ => Table::new(),
        };
        let mut merged = take("common");
        for (group, values) in take(class.name()) {
            match (merged.get_mut(&group), values) {
                (Some(Value::Table(common)), Value::Table(own)) => common.extend(own),
                (_, values) => drop(merged.insert(group, values)),
            }
        }
        merged.insert("pipeline".to_owned(), class.name().into());
        merged.try_into()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn text_to_image_has_the_defaults_of_diffusers() {
        let file = PipelineDefaults::of(PipelineClass::StableDiffusion).unwrap();
        assert_eq!(file.pipeline, PipelineClass::StableDiffusion);
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
                max_prompt_bytes: 64 << 10,
                max_gen_args_bytes: 64 << 10,
                max_image_bytes: None,
                max_image_pixels: None,
            }
        );
    }

    #[test]
    fn each_class_has_the_defaults_of_diffusers() {
        // The defaults of diffusers' `__call__`: steps, guidance, strength, noise level.
        let expected = [
            (PipelineClass::StableDiffusion, 50, 7.5, None, None),
            (PipelineClass::LatentConsistency, 4, 8.5, None, None),
            (PipelineClass::Img2Img, 50, 7.5, Some(0.8), None),
            (PipelineClass::Depth2Img, 50, 7.5, Some(0.8), None),
            (PipelineClass::Inpaint, 50, 7.5, Some(1.0), None),
            (PipelineClass::Upscale, 75, 9.0, None, Some(20)),
        ];
        assert_eq!(expected.len(), PipelineClass::ALL.len());
        for (class, steps, guidance, strength, noise_level) in expected {
            let PipelineDefaults {
                pipeline,
                defaults,
                limits,
            } = PipelineDefaults::of(class).unwrap();
            assert_eq!(pipeline, class);
            assert_eq!(defaults.num_inference_steps, steps, "{class}");
            assert_eq!(defaults.guidance_scale, guidance, "{class}");
            assert_eq!(defaults.strength, strength, "{class}");
            assert_eq!(defaults.noise_level, noise_level, "{class}");
            let takes_image = !matches!(class, PipelineClass::StableDiffusion | PipelineClass::LatentConsistency);
            assert_eq!(limits.max_image_bytes.is_some(), takes_image, "{class}");
            assert_eq!(limits.max_image_pixels.is_some(), takes_image, "{class}");
        }
    }

    #[test]
    fn file_with_unknown_or_missing_values_is_an_error() {
        let table = "[StableDiffusionPipeline.defaults]";
        let misspelled = PIPELINES.replace("max_unet_batch_size =", "max_row =");
        let missing = PIPELINES.replace("webp_quality = 80", "");
        let extra_value = PIPELINES.replace(table, &format!("{table}\nmore = 1"));
        let extra_group = PIPELINES.replace(table, &format!("[StableDiffusionPipeline.more]\n{table}"));
        for broken in [misspelled, missing, extra_value, extra_group] {
            assert_ne!(broken, PIPELINES);
            assert!(PipelineDefaults::parse(&broken, PipelineClass::StableDiffusion).is_err());
        }
    }

    #[test]
    fn every_table_of_the_file_is_a_known_class() {
        let file: Table = PIPELINES.parse().unwrap();
        for name in file.keys() {
            assert!(name == "common" || PipelineClass::from_name(name).is_some(), "{name}");
        }
        assert_eq!(file.len(), PipelineClass::ALL.len() + 1);
    }

    #[test]
    fn class_name_round_trips() {
        for class in PipelineClass::ALL {
            assert_eq!(PipelineClass::from_name(class.name()), Some(class));
            let parsed: PipelineClass = serde_json::from_value(class.name().into()).unwrap();
            assert_eq!(parsed, class);
        }
        assert_eq!(PipelineClass::from_name("FluxPipeline"), None);
    }

    #[test]
    fn format_names_match_serde_names() {
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
