//! Defaults and limits of each pipeline, read from the JSON files in `config/`, which are compiled in.
//!
//! Each value stands there beside its meaning, so that the file explains itself. A new pipeline is a new file and one
//! line in [`PipelineDefaults::of`].

use serde::{Deserialize, Deserializer};

use super::ModelParameters;
use crate::error::{Error, Result};

const TEXT_TO_IMAGE: &str = include_str!("../../../../config/text_to_image.json");
const LATENT_CONSISTENCY: &str = include_str!("../../../../config/latent_consistency.json");
const IMAGE_TO_IMAGE: &str = include_str!("../../../../config/image_to_image.json");
const DEPTH_TO_IMAGE: &str = include_str!("../../../../config/depth_to_image.json");
const INPAINT: &str = include_str!("../../../../config/inpaint.json");
const UPSCALE: &str = include_str!("../../../../config/upscale.json");

/// A diffusers pipeline, as `_class_name` in `model_index.json` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
pub enum PipelineClass {
    /// Text to image.
    #[serde(rename = "StableDiffusionPipeline")]
    StableDiffusion,
    /// Text to image in a few steps. The arithmetic is that of `StableDiffusionPipeline` with a UNet that takes the
    /// guidance scale itself and an `LCMScheduler`; the defaults are others.
    #[serde(rename = "LatentConsistencyModelPipeline")]
    LatentConsistency,
    /// Image to image.
    #[serde(rename = "StableDiffusionImg2ImgPipeline")]
    Img2Img,
    /// Image to image that keeps the depth of the input.
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
    /// Every pipeline class there is.
    pub const ALL: [Self; 6] = [
        Self::StableDiffusion,
        Self::LatentConsistency,
        Self::Img2Img,
        Self::Depth2Img,
        Self::Inpaint,
        Self::Upscale,
    ];

    /// diffusers' name of the class.
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

    /// The class of that diffusers name, if it is one of ours.
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
    /// Every format, by the name it has in `gen_args`.
    pub const ALL: [(&'static str, Self); 3] = [("png", Self::Png), ("jpeg", Self::Jpeg), ("webp", Self::Webp)];

    /// The name in `gen_args`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Webp => "webp",
        }
    }

    /// Most pixels that the format can hold along one side (ISO/IEC 15948, ITU-T T.81, RFC 9649).
    pub fn max_side(self) -> u32 {
        match self {
            Self::Png => i32::MAX as u32,
            Self::Jpeg => u16::MAX as u32,
            Self::Webp => (1 << 14) - 1,
        }
    }
}

/// Arguments of a request that names none.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// Denoising steps.
    #[serde(deserialize_with = "value")]
    pub num_inference_steps: u32,
    /// Guidance weight; guidance is on above 1.0.
    #[serde(deserialize_with = "value")]
    pub guidance_scale: f64,
    /// Images made from one prompt.
    #[serde(deserialize_with = "value")]
    pub num_images_per_prompt: u32,
    /// DDIM's noise weight, 0 to 1.
    #[serde(deserialize_with = "value")]
    pub eta: f64,
    /// Share of the rescaled noise prediction, 0 to 1; 0 where the pipeline does not take it.
    #[serde(default, deserialize_with = "value")]
    pub guidance_rescale: f64,
    /// How far the input image is changed, 0 to 1, where the pipeline takes it.
    #[serde(default, deserialize_with = "some_value")]
    pub strength: Option<f64>,
    /// Noise added to the image that is enlarged, where the pipeline takes it.
    #[serde(default, deserialize_with = "some_value")]
    pub noise_level: Option<u32>,
    /// Whether pixels outside the mask are copied from the input, where the pipeline takes it.
    #[serde(default, deserialize_with = "some_value")]
    pub keep_unmasked: Option<bool>,
    /// File format of the images.
    #[serde(deserialize_with = "value")]
    pub output_format: Format,
    /// JPEG quality, 1 to 100.
    #[serde(deserialize_with = "value")]
    pub jpeg_quality: u8,
    /// Quality of a lossy WebP, 1 to 100.
    #[serde(deserialize_with = "value")]
    pub webp_quality: u8,
}

/// What no request may exceed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Most denoising steps.
    #[serde(deserialize_with = "value")]
    pub max_steps: u32,
    /// Most pixels of one image, height times width; of the upscaler's, most pixels of one piece.
    #[serde(deserialize_with = "value")]
    pub max_pixels: u64,
    /// Most rows of one UNet call.
    #[serde(deserialize_with = "value")]
    pub max_unet_batch_size: u32,
    /// Longest prompt, in bytes.
    #[serde(deserialize_with = "value")]
    pub max_prompt_bytes: usize,
    /// Longest `gen_args`, in bytes.
    #[serde(deserialize_with = "value")]
    pub max_gen_args_bytes: usize,
    /// Longest input image, in bytes of base64, where the pipeline takes one.
    #[serde(default, deserialize_with = "some_value")]
    pub max_image_bytes: Option<usize>,
    /// Most pixels of an input image, height times width, where the pipeline takes one.
    #[serde(default, deserialize_with = "some_value")]
    pub max_image_pixels: Option<u64>,
}

impl Limits {
    /// Replaces the limits for which the model's `config.pbtxt` gives a value.
    #[must_use]
    pub fn with_parameters(mut self, parameters: &ModelParameters) -> Self {
        self.max_steps = parameters.max_steps.unwrap_or(self.max_steps);
        self.max_pixels = parameters.max_pixels.unwrap_or(self.max_pixels);
        self.max_unet_batch_size = parameters.max_unet_batch_size.unwrap_or(self.max_unet_batch_size);
        self
    }
}

/// The serving defaults and limits of one pipeline class.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineDefaults {
    /// The pipeline that they belong to.
    pub pipeline: PipelineClass,
    /// Arguments of a request that names none.
    pub defaults: Defaults,
    /// What no request may exceed.
    pub limits: Limits,
}

impl PipelineDefaults {
    /// The compiled-in defaults of a pipeline class.
    ///
    /// # Errors
    /// Internal if the file is damaged, which the tests rule out.
    pub fn of(class: PipelineClass) -> Result<Self> {
        Self::parse(match class {
            PipelineClass::StableDiffusion => TEXT_TO_IMAGE,
            PipelineClass::LatentConsistency => LATENT_CONSISTENCY,
            PipelineClass::Img2Img => IMAGE_TO_IMAGE,
            PipelineClass::Depth2Img => DEPTH_TO_IMAGE,
            PipelineClass::Inpaint => INPAINT,
            PipelineClass::Upscale => UPSCALE,
        })
    }

    fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|error| Error::internal(format!("compiled-in pipeline defaults: {error}")))
    }
}

/// One value and what it means. The meaning is for the reader of the file; it must be there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Setting<T> {
    value: T,
    meaning: String,
}

fn value<'de, D, T>(deserializer: D) -> std::result::Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let setting = Setting::<T>::deserialize(deserializer)?;
    if setting.meaning.trim().is_empty() {
        return Err(serde::de::Error::custom("a setting without a meaning"));
    }
    Ok(setting.value)
}

fn some_value<'de, D, T>(deserializer: D) -> std::result::Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    value(deserializer).map(Some)
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
    fn each_class_has_a_file_of_its_own() {
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
    fn the_file_is_read_strictly() {
        let misspelt = TEXT_TO_IMAGE.replace("max_unet_batch_size\": {", "max_row\": {");
        let silent = TEXT_TO_IMAGE.replace("Images made from one prompt. diffusers' default.", "");
        let extra = TEXT_TO_IMAGE.replace("\"defaults\": {", "\"more\": 1, \"defaults\": {");
        for broken in [misspelt, silent, extra] {
            assert_ne!(broken, TEXT_TO_IMAGE);
            assert!(PipelineDefaults::parse(&broken).is_err());
        }
    }

    #[test]
    fn class_names_are_those_of_diffusers() {
        for class in PipelineClass::ALL {
            assert_eq!(PipelineClass::from_name(class.name()), Some(class));
            let parsed: PipelineClass = serde_json::from_value(class.name().into()).unwrap();
            assert_eq!(parsed, class);
        }
        assert_eq!(PipelineClass::from_name("FluxPipeline"), None);
    }

    #[test]
    fn format_names_agree() {
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
