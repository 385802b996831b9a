//! Validation of one batch element.

mod args;
mod describe;
mod rules;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::gen_args::{GenArgs, not_utf8};
use crate::generate_request::{GenerateRequest, uses_guidance};
use crate::inputs::{Element, PipelineInputs};
use crate::prompt_syntax::Prompts;
use crate::xl_inputs::XlInputs;
use diffusion_core::config::{Limits, ModelParameters, PipelineClass};
use diffusion_core::suggest::did_you_mean;
use diffusion_core::{Context, Error, Result};
use diffusion_image::{OutputFormat, RgbImage, encode, to_base64};

use args::{
    check_description, check_strength, check_unet_batch_size, check_work, clip_skip, decoder, output, preview,
    progress_every, steps,
};
pub(crate) use rules::PipelineRules;

/// Longest `default_gen_args` of a model, in bytes.
const MAX_DEFAULT_GEN_ARGS_BYTES: usize = 64 << 10;

/// The facts about a loaded model that decide its requests.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// The pipeline class of the folder.
    pub class: PipelineClass,
    /// Default height of an image: the UNet's `sample_size` times `vae_scale_factor`, in pixels.
    pub default_height: u32,
    /// Default width of an image.
    pub default_width: u32,
    /// Pixels per latent along one side.
    pub vae_scale_factor: u32,
    /// The text encoder's `num_hidden_layers`.
    pub num_text_layers: usize,
    /// Whether the UNet takes the guidance scale as an input (`time_cond_proj_dim`, latent consistency models). Then no
    /// step predicts the noise without the prompt.
    pub guidance_embedding: bool,
    /// The largest `noise_level`; 0 for a pipeline without one.
    pub max_noise_level: u32,
    /// Whether the model has an `AutoencoderTiny`.
    pub tiny_decoder: bool,
    /// Whether the images go through a safety checker.
    pub safety_checker: bool,
    /// The class names that a request may ask for.
    pub schedulers: &'static [&'static str],
}

/// The tensor elements of one batch element. `None` is an input that the request does not have.
#[derive(Debug, Clone, Copy, Default)]
pub struct ElementInputs<'a> {
    /// UTF-8.
    pub prompt: &'a [u8],
    /// UTF-8.
    pub negative_prompt: Option<&'a [u8]>,
    /// An image file in base64.
    pub image: Option<&'a [u8]>,
    /// An image file in base64.
    pub mask_image: Option<&'a [u8]>,
    /// An image file in base64.
    pub depth_map: Option<&'a [u8]>,
    /// A JSON object.
    pub gen_args: Option<&'a [u8]>,
}

/// Validates the requests of one model. Created once, when the model loads.
#[derive(Debug, Clone)]
pub struct RequestValidator {
    model: ModelInfo,
    /// At least one.
    rules: Vec<PipelineRules>,
    limits: Limits,
}

impl RequestValidator {
    /// Creates the validator of a loaded model.
    ///
    /// # Errors
    /// InvalidArgument if the model's `scheduler` is not supported, or if a request without `gen_args` would be refused:
    /// `default_gen_args` and the limits in the model's parameters must fit each other.
    pub fn new(model: ModelInfo, parameters: &ModelParameters) -> Result<Self> {
        let classes: &[PipelineClass] = match model.class {
            // The three pipelines have the same components: the inputs decide.
            PipelineClass::StableDiffusion => &[
                PipelineClass::StableDiffusion,
                PipelineClass::Img2Img,
                PipelineClass::Inpaint,
            ],
            PipelineClass::StableDiffusionXl => &[
                PipelineClass::StableDiffusionXl,
                PipelineClass::Img2ImgXl,
                PipelineClass::InpaintXl,
            ],
            _ => &[model.class],
        };
        let default_gen_args = GenArgs::parse(parameters.default_gen_args.as_bytes(), MAX_DEFAULT_GEN_ARGS_BYTES)
            .and_then(|args| args.check_supported_by(classes).map(|()| args))
            .context(|| "parameter `default_gen_args`")?;
        let rules = classes
            .iter()
            .map(|&class| PipelineRules::new(class, parameters, &default_gen_args))
            .collect::<Result<Vec<_>>>()?;
        let mut limits = find(&rules, model.class)?.limits().clone();
        for rules in &rules {
            limits.max_image_bytes = limits.max_image_bytes.max(rules.limits().max_image_bytes);
            limits.max_image_pixels = limits.max_image_pixels.max(rules.limits().max_image_pixels);
        }
        let validator = Self { model, rules, limits };
        if let Some(scheduler) = &parameters.scheduler {
            validator.check_scheduler(scheduler).context(|| "model parameters")?;
        }
        validator.check_defaults().context(|| "parameter `default_gen_args`")?;
        Ok(validator)
    }

    /// Returns the pipeline class of the model.
    pub fn class(&self) -> PipelineClass {
        self.model.class
    }

    /// Returns the limits of the folder's pipeline, with the largest image limits of all pipelines that it serves.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Checks one batch element and decides every argument: by the element's `gen_args`, else by the model's
    /// `default_gen_args`, else by the pipeline's defaults. Images are checked up to their headers.
    ///
    /// # Errors
    /// InvalidArgument or Unsupported that names the input, the key and the limit, and holds no text of the user.
    pub fn validate(&self, inputs: &ElementInputs<'_>) -> Result<GenerateRequest> {
        self.validate_for(self.select_pipeline(inputs)?, inputs)
    }

    fn validate_for(&self, rules: &PipelineRules, inputs: &ElementInputs<'_>) -> Result<GenerateRequest> {
        let limits = rules.limits();
        let prompt = text("prompt", inputs.prompt, limits.max_prompt_bytes)?;
        let negative_prompt = text(
            "negative_prompt",
            inputs.negative_prompt.unwrap_or_default(),
            limits.max_prompt_bytes,
        )?;
        let args = GenArgs::parse(inputs.gen_args.unwrap_or_default(), limits.max_gen_args_bytes)
            .and_then(|args| {
                args.check_supported_by(&[rules.class()])?;
                Ok(args.with_defaults(&rules.model_args))
            })
            .context(|| "gen_args")?;
        let prompts = Prompts::parse(args.prompt_syntax.unwrap_or_default(), prompt, negative_prompt)?;
        let element = Element {
            inputs,
            args: &args,
            rules,
            model: &self.model,
        };
        let has_negative_prompt = element.inputs.negative_prompt.is_some();
        let inputs = PipelineInputs::read(&element)?;
        let size = inputs.rules().size(&element)?;
        let xl = rules
            .class()
            .is_xl()
            .then(|| XlInputs::new(rules.class(), &args, size, has_negative_prompt));
        self.build(rules, args, prompts, inputs, size, xl)
            .context(|| "gen_args")
    }

    fn build(
        &self,
        rules: &PipelineRules,
        args: GenArgs,
        prompts: Prompts,
        inputs: PipelineInputs,
        (height, width): (u32, u32),
        xl: Option<XlInputs>,
    ) -> Result<GenerateRequest> {
        let defaults = rules.defaults();
        check_description(&args)?;
        let num_inference_steps = steps(rules, &args)?;
        check_strength(inputs.rules().strength(), num_inference_steps)?;
        let guidance_scale = args.guidance_scale.unwrap_or(defaults.guidance_scale);
        let guidance_embedding = self.model.guidance_embedding;
        let images = args
            .num_images_per_prompt
            .unwrap_or(defaults.num_images_per_prompt.into());
        check_unet_batch_size(rules, images, uses_guidance(guidance_scale, guidance_embedding))?;
        if let Some(name) = &args.scheduler {
            self.check_scheduler(name)?;
        }
        let request = GenerateRequest {
            prompts,
            output: output(rules, &args, inputs.rules().output_size((height, width)))?,
            inputs,
            height,
            width,
            num_inference_steps,
            guidance_scale,
            guidance_embedding,
            num_images_per_prompt: usize::try_from(images).unwrap_or(usize::MAX),
            eta: args.eta.unwrap_or(defaults.eta),
            guidance_rescale: args.guidance_rescale.unwrap_or(defaults.guidance_rescale),
            clip_skip: clip_skip(&args, self.model.num_text_layers)?,
            seed: match args.seed {
                Some(seed) => seed,
                None => getrandom::u32()
                    .map_err(|error| Error::internal(format!("no random seed: {error}")))?
                    .into(),
            },
            deep_cache: args.deep_cache.and_then(|n| usize::try_from(n).ok()).unwrap_or(1),
            decoder: decoder(&args, self.model.tiny_decoder)?,
            xl,
            progress_every: progress_every(&args),
            preview: preview(&args, &self.model)?,
            loras: args.loras.unwrap_or_default(),
            scheduler: args.scheduler,
            timesteps: args.timesteps,
            sigmas: args.sigmas,
            timeout: args.timeout_ms.map(Duration::from_millis),
        };
        check_work(rules, &request)?;
        Ok(request)
    }

    /// Selects the pipeline by the inputs.
    fn select_pipeline(&self, inputs: &ElementInputs<'_>) -> Result<&PipelineRules> {
        let class = match (self.class(), inputs.image, inputs.mask_image) {
            (PipelineClass::StableDiffusion | PipelineClass::StableDiffusionXl, None, Some(_)) => {
                return Err(Error::invalid_argument(
                    "input `mask_image` requires input `image`, the image that is repainted",
                ));
            }
            (PipelineClass::StableDiffusion, Some(_), None) => PipelineClass::Img2Img,
            (PipelineClass::StableDiffusion, Some(_), Some(_)) => PipelineClass::Inpaint,
            (PipelineClass::StableDiffusionXl, Some(_), None) => PipelineClass::Img2ImgXl,
            (PipelineClass::StableDiffusionXl, Some(_), Some(_)) => PipelineClass::InpaintXl,
            (class, _, _) => class,
        };
        find(&self.rules, class)
    }

    /// Validates the smallest request without `gen_args` for every pipeline.
    fn check_defaults(&self) -> Result<()> {
        let image = self.white_image()?;
        let inputs = ElementInputs {
            image: Some(image.as_bytes()),
            mask_image: Some(image.as_bytes()),
            ..ElementInputs::default()
        };
        for rules in &self.rules {
            self.validate_for(rules, &inputs)?;
        }
        Ok(())
    }

    /// Returns the smallest image, in base64.
    fn white_image(&self) -> Result<String> {
        let side = self.model.vae_scale_factor;
        let white = RgbImage::new(side, side, vec![255; (side * side * 3) as usize])?;
        Ok(to_base64(&encode(
            &white,
            &OutputFormat::Png,
            &serde_json::Value::Null,
            false,
        )?))
    }

    fn check_scheduler(&self, name: &str) -> Result<()> {
        let schedulers = self.model.schedulers;
        if schedulers.contains(&name) {
            return Ok(());
        }
        Err(Error::invalid_argument(format!(
            "`scheduler` must be one of {}{}",
            schedulers.join(", "),
            did_you_mean(name, schedulers.iter().copied())
        )))
    }
}

fn find(rules: &[PipelineRules], class: PipelineClass) -> Result<&PipelineRules> {
    rules
        .iter()
        .find(|rules| rules.class() == class)
        .ok_or_else(|| Error::internal(format!("{class} has no rules")))
}

fn text(input: &str, bytes: &[u8], max_bytes: usize) -> Result<String> {
    if bytes.len() > max_bytes {
        return Err(Error::invalid_argument(format!(
            "{input}: {} bytes exceed the limit of {max_bytes}",
            bytes.len()
        )));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(not_utf8(&error).context(input)),
    }
}
