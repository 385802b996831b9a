//! An image request: plain values, every one of them decided.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::prompt_syntax::PromptSyntax;
use diffusion_core::config::PipelineClass;
use diffusion_image::RgbImage;
use diffusion_image::depth_map::DepthMap;
use diffusion_image::mask::Mask;
use diffusion_image::output_format::OutputFormat;

/// Class name of a diffusers scheduler, one of
/// [`Capabilities::schedulers`](super::resolve::Capabilities::schedulers).
pub type SchedulerName = String;

/// What an image is made from, beside the prompts.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Noise alone.
    Text,
    /// An image that is changed.
    Image {
        /// The image, of any size.
        image: Arc<RgbImage>,
        /// How far it is changed, above 0 and at most 1: at least one step is taken.
        strength: f64,
    },
    /// An image that is changed and keeps its depth.
    Depth {
        /// The image, of any size.
        image: Arc<RgbImage>,
        /// The depth that is kept, of any size; `None` lets the model's estimator find it.
        depth_map: Option<Arc<DepthMap>>,
        /// As in [`Source::Image`].
        strength: f64,
    },
    /// An image of which a part is repainted.
    Inpaint {
        /// The image, of any size.
        image: Arc<RgbImage>,
        /// What is repainted (white) and what is kept (black), of any size; of that of `image` with
        /// `padding_mask_crop`.
        mask_image: Arc<Mask>,
        /// As in [`Source::Image`].
        strength: f64,
        /// Margin in pixels around the masked part; the rest of the image is then left out.
        padding_mask_crop: Option<u32>,
        /// Whether the kept pixels are copied from `image`.
        keep_unmasked: bool,
    },
    /// An image that is enlarged.
    Upscale {
        /// The image, of any size.
        image: Arc<RgbImage>,
        /// Timestep of the noise that is added to it.
        noise_level: i64,
        /// Pixels of the enlarged image that are made in one piece; a larger image is made in tiles.
        max_piece_pixels: u64,
    },
}

impl Source {
    /// The pipeline that the request is for.
    pub fn class(&self) -> PipelineClass {
        match self {
            Self::Text => PipelineClass::StableDiffusion,
            Self::Image { .. } => PipelineClass::Img2Img,
            Self::Depth { .. } => PipelineClass::Depth2Img,
            Self::Inpaint { .. } => PipelineClass::Inpaint,
            Self::Upscale { .. } => PipelineClass::Upscale,
        }
    }

    /// The arguments that say how the source is used, as `gen_args` has them.
    fn gen_args(&self) -> Vec<(&'static str, Value)> {
        match self {
            Self::Text => Vec::new(),
            Self::Image { strength, .. } | Self::Depth { strength, .. } => {
                vec![("strength", json!(strength))]
            }
            Self::Inpaint {
                strength,
                padding_mask_crop,
                keep_unmasked,
                ..
            } => {
                let mut args = vec![("strength", json!(strength)), ("keep_unmasked", json!(keep_unmasked))];
                args.extend(padding_mask_crop.map(|pad| ("padding_mask_crop", json!(pad))));
                args
            }
            Self::Upscale { noise_level, .. } => vec![("noise_level", json!(noise_level))],
        }
    }
}

/// One image request with every argument decided. What it holds is within the limits of its model.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// The prompt, which may be empty.
    pub prompt: String,
    /// The negative prompt; empty if none was given. Not used without guidance.
    pub negative_prompt: String,
    /// How the two prompts are read. Both can be read so.
    pub prompt_syntax: PromptSyntax,
    /// What the images are made from.
    pub source: Source,
    /// Height of what is generated, in pixels: a multiple of the VAE's scale factor.
    pub height: u32,
    /// Width of what is generated, in pixels: a multiple of the VAE's scale factor.
    pub width: u32,
    /// Denoising steps before `strength` shortens the run, at least 1; the number of `timesteps` or `sigmas` if there are any.
    pub num_inference_steps: usize,
    /// Guidance weight, 0 to 100.
    pub guidance_scale: f64,
    /// As [`Capabilities::guidance_embedding`](super::resolve::Capabilities::guidance_embedding).
    pub guidance_embedding: bool,
    /// Images to make, at least 1.
    pub num_images_per_prompt: usize,
    /// DDIM's noise weight, 0 to 1.
    pub eta: f64,
    /// Share of the rescaled noise prediction, 0 to 1.
    pub guidance_rescale: f64,
    /// Last text encoder layers to leave out, at most as many as there are. `None` is the encoder's own output.
    pub clip_skip: Option<usize>,
    /// Custom timesteps, each 0 to 999, strictly descending, not empty.
    pub timesteps: Option<Vec<i64>>,
    /// Custom noise levels, each above 0, not empty. Never together with `timesteps`.
    pub sigmas: Option<Vec<f64>>,
    /// Seed of the noise, below 2^63: the request's, or one drawn at random below 2^32.
    pub seed: u64,
    /// The scheduler that the request asked for; `None` is the model's.
    pub scheduler: Option<SchedulerName>,
    /// File format of the images.
    pub output: OutputFormat,
}

impl GenerateRequest {
    /// Whether each step predicts the noise with and without the prompt, as diffusers decides it.
    pub fn do_classifier_free_guidance(&self) -> bool {
        guides(self.guidance_scale, self.guidance_embedding)
    }

    /// Rows that the request adds to a UNet call.
    pub fn rows(&self) -> usize {
        let guided = self.do_classifier_free_guidance();
        rows(self.num_images_per_prompt as u64, guided) as usize
    }

    /// The arguments as a `gen_args` object. Sent again with the same prompts to the same model, it makes the same
    /// images. `scheduler` is the class name of the scheduler that was used.
    pub fn gen_args(&self, scheduler: &str) -> Map<String, Value> {
        let mut args = Map::new();
        let mut put = |key: &str, value: Value| args.insert(key.to_owned(), value);
        // The others take their size from the image.
        if matches!(self.source, Source::Text | Source::Inpaint { .. }) {
            put("height", self.height.into());
            put("width", self.width.into());
        }
        for (key, value) in self.source.gen_args() {
            put(key, value);
        }
        match (&self.timesteps, &self.sigmas) {
            (Some(timesteps), _) => put("timesteps", json!(timesteps)),
            (None, Some(sigmas)) => put("sigmas", json!(sigmas)),
            (None, None) => put("num_inference_steps", self.num_inference_steps.into()),
        };
        put("guidance_scale", self.guidance_scale.into());
        put("num_images_per_prompt", self.num_images_per_prompt.into());
        put("eta", self.eta.into());
        // Not every pipeline takes it.
        if self.guidance_rescale != 0.0 {
            put("guidance_rescale", self.guidance_rescale.into());
        }
        put("prompt_syntax", self.prompt_syntax.name().into());
        if let Some(clip_skip) = self.clip_skip {
            put("clip_skip", clip_skip.into());
        }
        put("seed", self.seed.into());
        put("scheduler", scheduler.into());
        put("output_format", self.output.format().name().into());
        if let Some(quality) = self.output.quality() {
            put("quality", quality.into());
        }
        args
    }
}

/// Whether a guidance weight asks for rows without the prompt.
pub(super) fn guides(guidance_scale: f64, guidance_embedding: bool) -> bool {
    guidance_scale > 1.0 && !guidance_embedding
}

/// Rows of a UNet call for that many images.
pub(super) fn rows(images: u64, guided: bool) -> u64 {
    images.saturating_mul(if guided { 2 } else { 1 })
}
