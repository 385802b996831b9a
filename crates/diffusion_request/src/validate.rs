//! From the bytes of one batch row to a [`GenerateRequest`].

mod args;
#[cfg(test)]
mod tests;
mod variant;

use super::gen_args::{GenArgs, not_utf8};
use super::generate_request::{GenerateRequest, SchedulerName, Source, guides};
use diffusion_core::config::{Limits, ModelParameters, PipelineClass, PipelineDefaults};
use diffusion_core::suggest::did_you_mean;
use diffusion_core::{Context, Error, Result};
use diffusion_image::RgbImage;
use diffusion_image::mask::Mask;

use args::{check_rows, check_strength, output, output_size, steps};
use variant::Variant;

/// Longest `default_gen_args` of a model, in bytes.
const MAX_DEFAULT_GEN_ARGS_BYTES: usize = 64 << 10;

/// What of a loaded model decides its requests.
#[derive(Debug, Clone)]
pub struct Capabilities {
    /// The pipeline class of the folder.
    pub class: PipelineClass,
    /// Height of an image whose size nobody says: the UNet's `sample_size` times `vae_scale_factor`, in pixels.
    pub default_height: u32,
    /// Its width.
    pub default_width: u32,
    /// Pixels along one side that one latent stands for.
    pub vae_scale_factor: u32,
    /// The text encoder's `num_hidden_layers`.
    pub num_text_layers: usize,
    /// The UNet takes the guidance scale itself (`time_cond_proj_dim`, latent consistency models), so that no step
    /// predicts the noise without the prompt, whatever the scale.
    pub guidance_embedding: bool,
    /// The largest `noise_level`; 0 for a pipeline that takes none.
    pub max_noise_level: u32,
    /// The class names that a request may ask for.
    pub schedulers: &'static [&'static str],
}

/// One row of a request's tensors. `None` is an input that the request does not have.
#[derive(Debug, Clone, Copy, Default)]
pub struct RowInputs<'a> {
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

/// What a model's requests are resolved against. Made once, when the model loads.
#[derive(Debug, Clone)]
pub struct RequestContext {
    capabilities: Capabilities,
    /// At least one.
    variants: Vec<Variant>,
    limits: Limits,
}

impl RequestContext {
    /// The context of a loaded model.
    ///
    /// # Errors
    /// InvalidArgument if the model's `scheduler` is not one of those that it can have, or if a request without
    /// `gen_args` could not be served: `default_gen_args` and the limits in the model's parameters must fit each other.
    pub fn new(capabilities: Capabilities, parameters: &ModelParameters) -> Result<Self> {
        let classes: &[PipelineClass] = match capabilities.class {
            // The three share their parts: what is given decides.
            PipelineClass::StableDiffusion => &[
                PipelineClass::StableDiffusion,
                PipelineClass::Img2Img,
                PipelineClass::Inpaint,
            ],
            PipelineClass::LatentConsistency => &[PipelineClass::LatentConsistency],
            PipelineClass::Img2Img => &[PipelineClass::Img2Img],
            PipelineClass::Depth2Img => &[PipelineClass::Depth2Img],
            PipelineClass::Inpaint => &[PipelineClass::Inpaint],
            PipelineClass::Upscale => &[PipelineClass::Upscale],
        };
        let default_gen_args = GenArgs::parse(parameters.default_gen_args.as_bytes(), MAX_DEFAULT_GEN_ARGS_BYTES)
            .context(|| "parameter `default_gen_args`")?;
        default_gen_args
            .check_taken_by(classes)
            .context(|| "model parameters, default_gen_args")?;
        let variants = classes
            .iter()
            .map(|&class| {
                let mut defaults = PipelineDefaults::of(class)?;
                defaults.limits = defaults.limits.with_parameters(parameters);
                Ok(Variant {
                    defaults,
                    default_gen_args: default_gen_args.taken_by(class),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let mut limits = PipelineDefaults::of(capabilities.class)?
            .limits
            .with_parameters(parameters);
        for variant in &variants {
            let own = variant.limits();
            limits.max_image_bytes = limits.max_image_bytes.max(own.max_image_bytes);
            limits.max_image_pixels = limits.max_image_pixels.max(own.max_image_pixels);
        }
        let context = Self {
            capabilities,
            variants,
            limits,
        };
        if let Some(scheduler) = &parameters.scheduler {
            context.known_scheduler(scheduler).context(|| "model parameters")?;
        }
        for variant in &context.variants {
            context
                .check_defaults(variant)
                .context(|| "model parameters, default_gen_args")?;
        }
        Ok(context)
    }

    /// The pipeline class of the model.
    pub fn class(&self) -> PipelineClass {
        self.capabilities.class
    }

    /// The limits of the folder's own pipeline, with those of images where one of its pipelines takes any.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The pipeline that a row is for.
    fn variant(&self, row: &RowInputs<'_>) -> Result<&Variant> {
        let class = match (self.class(), row.image, row.mask_image) {
            (PipelineClass::StableDiffusion, None, Some(_)) => {
                return Err(Error::invalid_argument(
                    "input `mask_image` needs input `image`, the image that is repainted",
                ));
            }
            (PipelineClass::StableDiffusion, Some(_), None) => PipelineClass::Img2Img,
            (PipelineClass::StableDiffusion, Some(_), Some(_)) => PipelineClass::Inpaint,
            (class, _, _) => class,
        };
        self.variants
            .iter()
            .find(|variant| variant.class() == class)
            .ok_or_else(|| Error::internal(format!("{class} has no defaults")))
    }

    /// Checks that a request that gives no arguments could be served.
    fn check_defaults(&self, variant: &Variant) -> Result<()> {
        let args = variant.default_gen_args.clone();
        let side = self.capabilities.vae_scale_factor;
        let pixels = (side * side) as usize;
        let source = variant.source_of(
            RgbImage::new(side, side, vec![0; pixels * 3])?,
            Some(Mask::new(side, side, vec![255; pixels])?),
            None,
            &args,
            &self.capabilities,
        )?;
        let size = self.size(variant, &args, &source)?;
        self.resolve_args(variant, args, source, size).map(drop)
    }

    /// The scheduler of that name, if it may be asked for.
    fn known_scheduler(&self, name: &str) -> Result<SchedulerName> {
        let schedulers = self.capabilities.schedulers;
        if schedulers.contains(&name) {
            return Ok(name.to_owned());
        }
        Err(Error::invalid_argument(format!(
            "`scheduler` must be one of {}{}",
            schedulers.join(", "),
            did_you_mean(name, schedulers.iter().copied())
        )))
    }

    /// Decides every argument, but for the size, which is decided. The prompts of the result are empty.
    fn resolve_args(
        &self,
        variant: &Variant,
        args: GenArgs,
        source: Source,
        (height, width): (u32, u32),
    ) -> Result<GenerateRequest> {
        let defaults = &variant.defaults.defaults;
        let num_inference_steps = steps(variant, &args)?;
        check_strength(&source, num_inference_steps)?;
        let guidance_scale = args.guidance_scale.unwrap_or(defaults.guidance_scale);
        let images = args
            .num_images_per_prompt
            .unwrap_or(defaults.num_images_per_prompt.into());
        let guidance_embedding = self.capabilities.guidance_embedding;
        check_rows(variant, images, guides(guidance_scale, guidance_embedding))?;
        let layers = self.capabilities.num_text_layers;
        let clip_skip = args.clip_skip.map(|skip| usize::try_from(skip).ok());
        if clip_skip.is_some_and(|skip| skip.is_none_or(|s| s > layers)) {
            return Err(Error::invalid_argument(format!(
                "`clip_skip` must be an integer from 0 to {layers}, the layers of the text encoder"
            )));
        }
        Ok(GenerateRequest {
            prompt: String::new(),
            negative_prompt: String::new(),
            prompt_syntax: args.prompt_syntax.unwrap_or_default(),
            output: output(variant, &args, output_size(&source, height, width))?,
            source,
            height,
            width,
            num_inference_steps,
            guidance_scale,
            guidance_embedding,
            num_images_per_prompt: usize::try_from(images).unwrap_or(usize::MAX),
            eta: args.eta.unwrap_or(defaults.eta),
            guidance_rescale: args.guidance_rescale.unwrap_or(defaults.guidance_rescale),
            clip_skip: clip_skip.flatten(),
            seed: match args.seed {
                Some(seed) => seed,
                None => getrandom::u32()
                    .map_err(|error| Error::internal(format!("no random seed: {error}")))?
                    .into(),
            },
            scheduler: args.scheduler.map(|name| self.known_scheduler(&name)).transpose()?,
            timesteps: args.timesteps,
            sigmas: args.sigmas,
        })
    }

    /// Height and width of what is generated. Where the arguments say, each has its own default, as in diffusers 0.16:
    /// current diffusers takes both defaults if one of the two is missing, and so silently drops the one that is given.
    /// The other pipelines take them from the image.
    fn size(&self, variant: &Variant, args: &GenArgs, source: &Source) -> Result<(u32, u32)> {
        let factor = self.capabilities.vae_scale_factor;
        let max_pixels = variant.limits().max_pixels;
        let of_image = |image: &RgbImage| {
            let down = |side: u32| side - side % factor;
            match (down(image.height()), down(image.width())) {
                (0, _) | (_, 0) => Err(Error::invalid_argument(format!(
                    "input `image` must be at least {factor} pixels high and wide; it is {}x{}",
                    image.width(),
                    image.height()
                ))),
                size => Ok(size),
            }
        };
        match source {
            Source::Text | Source::Inpaint { .. } => {
                let height = args.height.unwrap_or(self.capabilities.default_height.into());
                let width = args.width.unwrap_or(self.capabilities.default_width.into());
                let fits = height.checked_mul(width).is_some_and(|area| area <= max_pixels);
                match (u32::try_from(height), u32::try_from(width)) {
                    (Ok(height), Ok(width)) if fits => Ok((height, width)),
                    _ => Err(Error::invalid_argument(format!(
                        "gen_args: `height` {height} times `width` {width} is more than max_pixels {max_pixels}"
                    ))),
                }
            }
            Source::Image { image, .. } | Source::Depth { image, .. } => {
                let (height, width) = of_image(image)?;
                if u64::from(height) * u64::from(width) > max_pixels {
                    return Err(Error::invalid_argument(format!(
                        "input `image`: {width}x{height} pixels are more than max_pixels {max_pixels}"
                    )));
                }
                Ok((height, width))
            }
            Source::Upscale { image, .. } => {
                let (height, width) = of_image(image)?;
                Ok((height * factor, width * factor))
            }
        }
    }
}

/// Checks one batch row and decides every argument: the row's own, over the model's `default_gen_args`, over the
/// pipeline's defaults. The images are decoded here.
///
/// # Errors
/// InvalidArgument or Unsupported that names the input, the key and the limit, and holds no text of the user's.
pub fn resolve(row: &RowInputs<'_>, context: &RequestContext) -> Result<GenerateRequest> {
    let variant = context.variant(row)?;
    let limits = variant.limits();
    let prompt = text("prompt", row.prompt, limits.max_prompt_bytes)?;
    let negative_prompt = text(
        "negative_prompt",
        row.negative_prompt.unwrap_or_default(),
        limits.max_prompt_bytes,
    )?;
    let args = GenArgs::parse(row.gen_args.unwrap_or_default(), limits.max_gen_args_bytes)
        .and_then(|args| {
            args.check_taken_by(&[variant.class()])?;
            Ok(args.or(&variant.default_gen_args))
        })
        .context(|| "gen_args")?;
    let source = variant.source(row, &args, &context.capabilities)?;
    let size = context.size(variant, &args, &source)?;
    let request = context
        .resolve_args(variant, args, source, size)
        .context(|| "gen_args")?;
    let syntax = request.prompt_syntax;
    syntax.check(&prompt).context(|| "prompt")?;
    syntax.check(&negative_prompt).context(|| "negative_prompt")?;
    Ok(GenerateRequest {
        prompt,
        negative_prompt,
        ..request
    })
}

fn text(input: &str, bytes: &[u8], max_bytes: usize) -> Result<String> {
    if bytes.len() > max_bytes {
        return Err(Error::invalid_argument(format!(
            "{input}: {} bytes are more than the {max_bytes} that are allowed",
            bytes.len()
        )));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(not_utf8(&error).context(input)),
    }
}
