//! From the bytes of one batch row to the plain, resolved values of a picture request.

#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};

use super::gen_args::{GenArgs, not_utf8};
use super::typo::did_you_mean;
use crate::config::{Format, Limits, ModelParameters, PipelineClass, PipelineDefaults};
use crate::error::{Context, Error, Result};

/// Class name of a diffusers scheduler, one of [`RequestContext::schedulers`].
pub type SchedulerName = String;

/// File format of a picture, with its quality.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// Lossless, with the parameters in a text chunk.
    Png,
    /// Lossy.
    Jpeg {
        /// 1 to 100.
        quality: u8,
    },
    /// Lossy.
    Webp {
        /// 1 to 100.
        quality: u8,
    },
}

impl OutputFormat {
    /// The format without its quality.
    pub fn format(self) -> Format {
        match self {
            Self::Png => Format::Png,
            Self::Jpeg { .. } => Format::Jpeg,
            Self::Webp { .. } => Format::Webp,
        }
    }

    /// The quality, for the formats that have one.
    pub fn quality(self) -> Option<u8> {
        match self {
            Self::Png => None,
            Self::Jpeg { quality } | Self::Webp { quality } => Some(quality),
        }
    }
}

/// One picture request with every argument decided. What it holds is within the limits of its model.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// The prompt, which may be empty.
    pub prompt: String,
    /// The negative prompt; empty if none was given. Not used without guidance.
    pub negative_prompt: String,
    /// Height of the pictures in pixels, a multiple of 8.
    pub height: u32,
    /// Width of the pictures in pixels, a multiple of 8.
    pub width: u32,
    /// Denoising steps, at least 1; the number of `timesteps` or `sigmas` if there are any.
    pub num_inference_steps: usize,
    /// Guidance weight, 0 to 100.
    pub guidance_scale: f64,
    /// Pictures to make, at least 1.
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
    /// File format of the pictures.
    pub output: OutputFormat,
}

impl GenerateRequest {
    /// Whether each step predicts the noise with and without the prompt, as diffusers decides it.
    pub fn do_classifier_free_guidance(&self) -> bool {
        guides(self.guidance_scale)
    }

    /// Rows that the request adds to a UNet call.
    pub fn rows(&self) -> usize {
        rows(self.num_images_per_prompt as u64, self.guidance_scale) as usize
    }

    /// The arguments as a `gen_args` object. Sent again with the same prompts to the same model, it makes the same
    /// pictures. `scheduler` is the class name of the scheduler that was used.
    pub fn gen_args(&self, scheduler: &str) -> Map<String, Value> {
        let mut args = Map::new();
        let mut put = |key: &str, value: Value| args.insert(key.to_owned(), value);
        put("height", self.height.into());
        put("width", self.width.into());
        match (&self.timesteps, &self.sigmas) {
            (Some(timesteps), _) => put("timesteps", json!(timesteps)),
            (None, Some(sigmas)) => put("sigmas", json!(sigmas)),
            (None, None) => put("num_inference_steps", self.num_inference_steps.into()),
        };
        put("guidance_scale", self.guidance_scale.into());
        put("num_images_per_prompt", self.num_images_per_prompt.into());
        put("eta", self.eta.into());
        put("guidance_rescale", self.guidance_rescale.into());
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

fn guides(guidance_scale: f64) -> bool {
    guidance_scale > 1.0
}

fn rows(images: u64, guidance_scale: f64) -> u64 {
    images.saturating_mul(if guides(guidance_scale) { 2 } else { 1 })
}

/// What a model's requests are resolved against. Made once, when the model loads.
#[derive(Debug, Clone)]
pub struct RequestContext {
    class: PipelineClass,
    defaults: PipelineDefaults,
    default_gen_args: GenArgs,
    default_height: u32,
    default_width: u32,
    num_text_layers: usize,
    schedulers: &'static [&'static str],
}

impl RequestContext {
    /// The context of a loaded model.
    ///
    /// `default_height` and `default_width` are the UNet's `sample_size` times the VAE's scale factor, in pixels;
    /// `num_text_layers` is the text encoder's `num_hidden_layers`; `schedulers` are the class names that a request may
    /// ask for.
    ///
    /// # Errors
    /// InvalidArgument if the model's `scheduler` is not one of `schedulers`, or if a request without `gen_args` could
    /// not be served: `default_gen_args` and the limits in the model's parameters must fit each other. Unsupported for a
    /// pipeline class that is not served.
    pub fn new(
        class: PipelineClass,
        parameters: &ModelParameters,
        default_height: u32,
        default_width: u32,
        num_text_layers: usize,
        schedulers: &'static [&'static str],
    ) -> Result<Self> {
        let mut defaults = PipelineDefaults::of(class)?;
        defaults.limits = defaults.limits.with_parameters(parameters);
        let context = Self {
            class,
            defaults,
            default_gen_args: parameters.default_gen_args.clone(),
            default_height,
            default_width,
            num_text_layers,
            schedulers,
        };
        if let Some(scheduler) = &parameters.scheduler {
            context
                .known_scheduler(scheduler)
                .context(|| "model parameters")?;
        }
        context
            .resolve_args(GenArgs::default())
            .context(|| "model parameters, default_gen_args")?;
        Ok(context)
    }

    /// The pipeline class of the model.
    pub fn class(&self) -> PipelineClass {
        self.class
    }

    /// The limits that hold for the model's requests.
    pub fn limits(&self) -> &Limits {
        &self.defaults.limits
    }

    /// The class names of the schedulers that a request may ask for.
    pub fn schedulers(&self) -> &'static [&'static str] {
        self.schedulers
    }

    /// The entry of `schedulers` that is called `name`.
    fn known_scheduler(&self, name: &str) -> Result<SchedulerName> {
        if self.schedulers.contains(&name) {
            return Ok(name.to_owned());
        }
        Err(Error::invalid_argument(format!(
            "`scheduler` must be one of {}{}",
            self.schedulers.join(", "),
            did_you_mean(name, self.schedulers.iter().copied())
        )))
    }

    /// Decides every argument. The prompts of the result are empty.
    fn resolve_args(&self, args: GenArgs) -> Result<GenerateRequest> {
        let args = args.or(&self.default_gen_args);
        args.check_taken_by(self.class)?;
        let defaults = &self.defaults.defaults;

        let (height, width) = self.size(&args)?;
        let num_inference_steps = self.steps(&args)?;
        let guidance_scale = args.guidance_scale.unwrap_or(defaults.guidance_scale);
        let images = args
            .num_images_per_prompt
            .unwrap_or(defaults.num_images_per_prompt.into());
        self.check_rows(images, guidance_scale)?;
        let clip_skip = args.clip_skip.map(|skip| usize::try_from(skip).ok());
        if clip_skip.is_some_and(|skip| skip.is_none_or(|s| s > self.num_text_layers)) {
            return Err(Error::invalid_argument(format!(
                "`clip_skip` must be an integer from 0 to {}, the layers of the text encoder",
                self.num_text_layers
            )));
        }
        Ok(GenerateRequest {
            prompt: String::new(),
            negative_prompt: String::new(),
            height,
            width,
            num_inference_steps,
            guidance_scale,
            num_images_per_prompt: usize::try_from(images).unwrap_or(usize::MAX),
            eta: args.eta.unwrap_or(defaults.eta),
            guidance_rescale: args.guidance_rescale.unwrap_or(defaults.guidance_rescale),
            clip_skip: clip_skip.flatten(),
            output: self.output(&args, height, width)?,
            seed: match args.seed {
                Some(seed) => seed,
                None => getrandom::u32()
                    .map_err(|error| Error::internal(format!("no random seed: {error}")))?
                    .into(),
            },
            scheduler: args
                .scheduler
                .map(|name| self.known_scheduler(&name))
                .transpose()?,
            timesteps: args.timesteps,
            sigmas: args.sigmas,
        })
    }

    /// Height and width, each with its own default, as in diffusers 0.16. Current diffusers takes both defaults if one
    /// of the two is missing, and so silently drops the one that is given.
    fn size(&self, args: &GenArgs) -> Result<(u32, u32)> {
        let height = args.height.unwrap_or(self.default_height.into());
        let width = args.width.unwrap_or(self.default_width.into());
        let max_pixels = self.limits().max_pixels;
        let fits = height
            .checked_mul(width)
            .is_some_and(|area| area <= max_pixels);
        match (u32::try_from(height), u32::try_from(width)) {
            (Ok(height), Ok(width)) if fits => Ok((height, width)),
            _ => Err(Error::invalid_argument(format!(
                "`height` {height} times `width` {width} is more than max_pixels {max_pixels}"
            ))),
        }
    }

    /// The number of denoising steps. diffusers lets `timesteps` and `sigmas` win over `num_inference_steps`; here the
    /// two must agree, so that nothing is silently ignored.
    fn steps(&self, args: &GenArgs) -> Result<usize> {
        let max_steps = self.limits().max_steps;
        let list = match (&args.timesteps, &args.sigmas) {
            (Some(list), _) => Some(("timesteps", list.len())),
            (None, Some(list)) => Some(("sigmas", list.len())),
            (None, None) => None,
        };
        let given = args.num_inference_steps;
        if let (Some((name, len)), Some(steps)) = (list, given)
            && steps != len as u64
        {
            return Err(Error::invalid_argument(format!(
                "`num_inference_steps` {steps} is not the number of `{name}`, {len}; give one of the two"
            )));
        }
        let (name, steps) = match list {
            Some((name, len)) => (name, len as u64),
            None => (
                "num_inference_steps",
                given.unwrap_or(self.defaults.defaults.num_inference_steps.into()),
            ),
        };
        usize::try_from(steps)
            .ok()
            .filter(|_| steps <= u64::from(max_steps))
            .ok_or_else(|| {
                Error::invalid_argument(format!(
                    "{steps} steps of `{name}` are more than max_steps {max_steps}"
                ))
            })
    }

    fn check_rows(&self, images: u64, guidance_scale: f64) -> Result<()> {
        let rows = rows(images, guidance_scale);
        let max_rows = self.limits().max_rows;
        if rows <= u64::from(max_rows) {
            return Ok(());
        }
        let why = if guides(guidance_scale) {
            ", doubled by guidance,"
        } else {
            ""
        };
        Err(Error::invalid_argument(format!(
            "`num_images_per_prompt` {images}{why} needs {rows} rows of a UNet call, more than max_rows {max_rows}"
        )))
    }

    fn output(&self, args: &GenArgs, height: u32, width: u32) -> Result<OutputFormat> {
        let defaults = &self.defaults.defaults;
        let format = args.output_format.unwrap_or(defaults.output_format);
        if height.max(width) > format.max_side() {
            return Err(Error::invalid_argument(format!(
                "`output_format` {} holds at most {} pixels a side, the picture is {height} high and {width} wide",
                format.name(),
                format.max_side()
            )));
        }
        // GenArgs has checked that a quality is 1 to 100.
        let quality = |default| {
            args.quality
                .and_then(|q| u8::try_from(q).ok())
                .unwrap_or(default)
        };
        match format {
            Format::Jpeg => Ok(OutputFormat::Jpeg {
                quality: quality(defaults.jpeg_quality),
            }),
            Format::Webp => Ok(OutputFormat::Webp {
                quality: quality(defaults.webp_quality),
            }),
            Format::Png if args.quality.is_some() => Err(Error::invalid_argument(
                "`quality` goes with `output_format` jpeg or webp only, png is lossless",
            )),
            Format::Png => Ok(OutputFormat::Png),
        }
    }
}

/// Checks one batch row and decides every argument: the row's own, over the model's `default_gen_args`, over the
/// pipeline's defaults. `None` is an input that the request does not have.
///
/// # Errors
/// InvalidArgument or Unsupported that names the input, the key and the limit, and holds no text of the user's.
pub fn resolve(
    prompt: &[u8],
    negative_prompt: Option<&[u8]>,
    gen_args: Option<&[u8]>,
    context: &RequestContext,
) -> Result<GenerateRequest> {
    let limits = context.limits();
    let prompt = text("prompt", prompt, limits.max_prompt_bytes)?;
    let negative_prompt = text(
        "negative_prompt",
        negative_prompt.unwrap_or_default(),
        limits.max_prompt_bytes,
    )?;
    let request = GenArgs::parse(gen_args.unwrap_or_default(), limits.max_gen_args_bytes)
        .and_then(|args| context.resolve_args(args))
        .context(|| "gen_args")?;
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
