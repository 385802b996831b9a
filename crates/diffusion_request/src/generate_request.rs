//! A validated image request.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::decoder::Decoder;
use crate::inputs::PipelineInputs;
use crate::loras::LoraRequest;
use crate::preview::Preview;
use crate::prompt_syntax::Prompts;
use crate::xl_inputs::XlInputs;
use diffusion_image::OutputFormat;

/// An image request with every argument decided, within the limits of its model.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// The prompt and the negative prompt, which is not used without guidance. Both may be empty.
    pub prompts: Prompts,
    /// The inputs of the pipeline.
    pub inputs: PipelineInputs,
    /// Height of what is generated, in pixels: a multiple of the VAE's scale factor.
    pub height: u32,
    /// Width of what is generated, in pixels: a multiple of the VAE's scale factor.
    pub width: u32,
    /// Denoising steps before `strength` shortens the run, at least 1; the length of `timesteps` or `sigmas` if given.
    pub num_inference_steps: usize,
    /// Guidance weight, 0 to 100.
    pub guidance_scale: f64,
    /// As [`ModelInfo::guidance_embedding`](crate::ModelInfo::guidance_embedding).
    pub guidance_embedding: bool,
    /// Images to generate, at least 1.
    pub num_images_per_prompt: usize,
    /// DDIM's noise weight, 0 to 1.
    pub eta: f64,
    /// Share of the rescaled noise prediction, 0 to 1.
    pub guidance_rescale: f64,
    /// Last text encoder layers to skip, at most all. `None` is the encoder's own output.
    pub clip_skip: Option<usize>,
    /// Custom timesteps, each 0 to 999, strictly descending, not empty.
    pub timesteps: Option<Vec<i64>>,
    /// Custom noise levels, each above 0, not empty. Never together with `timesteps`.
    pub sigmas: Option<Vec<f64>>,
    /// Seed of the noise, below 2^63: the request's, or a random one below 2^32.
    pub seed: u64,
    /// Class name of the requested scheduler, one of [`ModelInfo::schedulers`](crate::ModelInfo::schedulers); `None` is
    /// the model's.
    pub scheduler: Option<String>,
    /// The whole UNet runs at each multiple of this number of steps, and its outermost layers alone at the others; 1 to 10.
    pub deep_cache: usize,
    /// The network that turns latents into images; [`Decoder::Tiny`] only if the model has it.
    pub decoder: Decoder,
    /// The LoRAs of the UNet and the text encoder; their products are added in this order.
    pub loras: Vec<LoraRequest>,
    /// File format of the images.
    pub output: OutputFormat,
    /// How long the client waits for the images.
    pub timeout: Option<Duration>,
    /// Steps from one progress response to the next, at least 1; `None` for no progress.
    pub progress_every: Option<usize>,
    /// How the images of progress responses are made; only with `progress_every`. `None` for responses without images.
    pub preview: Option<Preview>,
    /// What Stable Diffusion XL takes besides; `None` for other families.
    pub xl: Option<XlInputs>,
}

impl GenerateRequest {
    /// Returns whether each step predicts the noise with and without the prompt, as diffusers decides it.
    pub fn do_classifier_free_guidance(&self) -> bool {
        uses_guidance(self.guidance_scale, self.guidance_embedding)
    }

    /// Returns the number of entries that the request adds to a UNet batch.
    pub fn unet_batch_size(&self) -> usize {
        let guided = self.do_classifier_free_guidance();
        unet_batch_size(self.num_images_per_prompt as u64, guided) as usize
    }

    /// Returns the number of denoising steps that run: `strength` leaves out the first ones (diffusers' `get_timesteps`).
    pub fn denoising_steps(&self) -> usize {
        let steps = self.num_inference_steps;
        match self.inputs.rules().strength() {
            Some(strength) => ((steps as f64 * strength) as usize).min(steps),
            None => steps,
        }
    }

    /// Returns the pixels of one image that is generated.
    pub fn pixels(&self) -> u64 {
        u64::from(self.height) * u64::from(self.width)
    }

    /// Returns the size of the prompts and of the input images as they came, in bytes.
    pub fn input_bytes(&self) -> usize {
        let images = self.inputs.rules().images();
        self.prompts.size()
            + self.xl.as_ref().map_or(0, XlInputs::size)
            + images.iter().map(|image| image.file_size()).sum::<usize>()
    }

    /// Returns the pixels of one image of the response.
    pub fn output_pixels(&self) -> u64 {
        let (height, width) = self.inputs.rules().output_size((self.height, self.width));
        u64::from(height) * u64::from(width)
    }

    /// Returns the pixels of each input image.
    pub fn input_pixels(&self) -> Vec<u64> {
        let images = self.inputs.rules().images();
        let pixels = images
            .iter()
            .map(|image| u64::from(image.width()) * u64::from(image.height()));
        pixels.collect()
    }

    /// Returns the arguments as a `gen_args` object, without the scheduler. The same prompts, inputs, model and scheduler
    /// with this object give the same images.
    pub fn gen_args(&self) -> Map<String, Value> {
        let mut args = Map::new();
        let mut put = |key: &str, value: Value| args.insert(key.to_owned(), value);
        for (key, value) in self.inputs.rules().gen_args((self.height, self.width)) {
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
        // Only some pipelines support the key.
        if self.guidance_rescale != 0.0 {
            put("guidance_rescale", self.guidance_rescale.into());
        }
        match &self.xl {
            Some(xl) => xl.gen_args().into_iter().for_each(|(key, value)| {
                put(key, value);
            }),
            // Stable Diffusion XL has plain prompts.
            None => {
                put("prompt_syntax", self.prompts.syntax().name().into());
            }
        }
        if let Some(clip_skip) = self.clip_skip {
            put("clip_skip", clip_skip.into());
        }
        // Only some pipelines support the keys.
        if self.deep_cache != 1 {
            put("deep_cache", self.deep_cache.into());
        }
        if self.decoder != Decoder::default() {
            put("decoder", self.decoder.name().into());
        }
        if !self.loras.is_empty() {
            put("loras", self.loras.iter().map(LoraRequest::to_json).collect());
        }
        put("seed", self.seed.into());
        put("output_format", self.output.format().name().into());
        if let Some(quality) = self.output.quality() {
            put("quality", quality.into());
        }
        args
    }
}

/// Returns whether a guidance weight asks for predictions without the prompt.
pub(crate) fn uses_guidance(guidance_scale: f64, guidance_embedding: bool) -> bool {
    guidance_scale > 1.0 && !guidance_embedding
}

/// Returns the number of UNet batch entries for that many images.
pub(crate) fn unet_batch_size(images: u64, guided: bool) -> u64 {
    images.saturating_mul(if guided { 2 } else { 1 })
}
