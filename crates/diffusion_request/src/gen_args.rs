//! `gen_args`: the JSON object with the pipeline's call arguments under diffusers' names.
//!
//! [`KEYS`] is the whole vocabulary: it drives the parser, the error texts, the search for the nearest key and the check
//! of the keys that a pipeline supports. Errors name keys and limits and never quote a value. They quote an unknown key
//! only if it is a plain identifier.

mod keys;
#[cfg(test)]
mod tests;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;

use crate::decoder::Decoder;
use crate::loras::LoraRequest;
use crate::preview::Preview;
use crate::prompt_syntax::PromptSyntax;
use diffusion_core::config::{Format, PipelineClass};
use diffusion_core::quote::is_plain_key;
use diffusion_core::suggest::did_you_mean;
use diffusion_core::{Error, Result};

pub use keys::{KEYS, Key};

/// The arguments of a request. `None` is an absent or null key and means the default.
///
/// Types and the fixed ranges of [`KEYS`] are checked; limits of the model are not.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenArgs {
    /// Denoising steps, 1 to 1000.
    pub num_inference_steps: Option<u64>,
    /// Guidance weight, 0 to 100; guidance is on above 1.
    pub guidance_scale: Option<f64>,
    /// Height of the image in pixels, a multiple of 8.
    pub height: Option<u64>,
    /// Width of the image in pixels, a multiple of 8.
    pub width: Option<u64>,
    /// How far the input image is changed, 0 to 1.
    pub strength: Option<f64>,
    /// Timestep of the noise that is added to the image before it is enlarged, 0 to 350.
    pub noise_level: Option<u64>,
    /// Images to generate from one prompt, 1 to 256.
    pub num_images_per_prompt: Option<u64>,
    /// DDIM's noise weight, 0 to 1.
    pub eta: Option<f64>,
    /// Share of the rescaled noise prediction, 0 to 1.
    pub guidance_rescale: Option<f64>,
    /// Last text encoder layers to skip.
    pub clip_skip: Option<u64>,
    /// Custom timesteps, each 0 to 999, strictly descending.
    pub timesteps: Option<Vec<i64>>,
    /// Custom noise levels, each above 0.
    pub sigmas: Option<Vec<f64>>,
    /// Margin in pixels around the masked part; the image is cropped to both.
    pub padding_mask_crop: Option<u64>,
    /// Seed of the noise, 0 to 2^63-1.
    pub seed: Option<u64>,
    /// Class name of a scheduler; may be an unsupported one.
    pub scheduler: Option<String>,
    /// File format of the images.
    pub output_format: Option<Format>,
    /// Quality of a JPEG or WebP, 1 to 100.
    pub quality: Option<u64>,
    /// Whether pixels outside the mask are copied from the input.
    pub keep_unmasked: Option<bool>,
    /// How the prompts are parsed.
    pub prompt_syntax: Option<PromptSyntax>,
    /// Steps from one call of the whole UNet to the next, 1 to 10.
    pub deep_cache: Option<u64>,
    /// The network that turns latents into images.
    pub decoder: Option<Decoder>,
    /// LoRAs, at most 8.
    pub loras: Option<Vec<LoraRequest>>,
    /// Milliseconds until the request must be answered, 1 to 86400000.
    pub timeout_ms: Option<u64>,
    /// Steps from one progress response to the next, 1 to 1000; 0 for none.
    pub progress_every: Option<u64>,
    /// How the images of progress responses are made.
    pub preview: Option<Preview>,
    /// Whether the request asks for the description of the model, and for no image.
    pub describe: Option<bool>,
    /// The prompt of the second text encoder.
    pub prompt_2: Option<String>,
    /// The negative prompt of the second text encoder.
    pub negative_prompt_2: Option<String>,
    /// Height and width that the image had before it was cropped, in pixels, each 1 to 65536.
    pub original_size: Option<[u32; 2]>,
    /// Where the image was cropped from, top and left in pixels, each 0 to 65536.
    pub crops_coords_top_left: Option<[u32; 2]>,
    /// Height and width that the image should look as if it had, in pixels, each 1 to 65536.
    pub target_size: Option<[u32; 2]>,
    /// `original_size` of the negative prompt.
    pub negative_original_size: Option<[u32; 2]>,
    /// `crops_coords_top_left` of the negative prompt.
    pub negative_crops_coords_top_left: Option<[u32; 2]>,
    /// `target_size` of the negative prompt.
    pub negative_target_size: Option<[u32; 2]>,
}

/// A JSON object as a list of its pairs, which shows duplicate keys.
pub struct JsonObject(pub Vec<(String, Value)>);

impl<'de> serde::Deserialize<'de> for JsonObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct ObjectVisitor;
        impl<'de> Visitor<'de> for ObjectVisitor {
            type Value = JsonObject;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<JsonObject, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(JsonObject(pairs))
            }
        }
        deserializer.deserialize_map(ObjectVisitor)
    }
}

impl GenArgs {
    /// Parses the text of one `gen_args` element. White space alone means no arguments.
    ///
    /// # Errors
    /// InvalidArgument for text longer than `max_bytes`, text that is not one JSON object, an unknown or duplicate key, a
    /// wrong type and a value out of range. The text names the key but not the input: the caller adds the input with
    /// [`Error::context`].
    ///
    /// ```
    /// use diffusion_request::GenArgs;
    ///
    /// let args = GenArgs::parse(br#"{"seed": 7, "height": null}"#, 1 << 16)?;
    /// assert_eq!((args.seed, args.height), (Some(7), None));
    /// let error = GenArgs::parse(br#"{"sed": 7}"#, 1 << 16).unwrap_err();
    /// assert_eq!(error.to_string(), "unknown key `sed`; did you mean `seed`?");
    /// # Ok::<(), diffusion_core::Error>(())
    /// ```
    pub fn parse(text: &[u8], max_bytes: usize) -> Result<Self> {
        if text.len() > max_bytes {
            return Err(Error::invalid_argument(format!(
                "{} bytes exceed the limit of {max_bytes}",
                text.len()
            )));
        }
        let text = std::str::from_utf8(text).map_err(|error| not_utf8(&error))?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let JsonObject(pairs) = serde_json::from_str(text).map_err(|error| not_an_object(&error))?;
        let mut args = Self::default();
        let mut seen: Vec<&str> = Vec::with_capacity(KEYS.len());
        for (name, value) in &pairs {
            let key = KEYS
                .iter()
                .find(|key| key.name == name)
                .ok_or_else(|| unknown_key(name))?;
            if seen.contains(&key.name) {
                return Err(Error::invalid_argument(format!("`{}` is given twice", key.name)));
            }
            seen.push(key.name);
            if !value.is_null() {
                key.store(value, &mut args)?;
            }
        }
        if args.timesteps.is_some() && args.sigmas.is_some() {
            return Err(Error::invalid_argument(
                "only one of `timesteps` and `sigmas` can be given",
            ));
        }
        Ok(args)
    }

    /// Checks that one of the pipelines supports every given argument.
    ///
    /// # Errors
    /// InvalidArgument that names the key and the pipelines.
    pub fn check_supported_by(&self, classes: &[PipelineClass]) -> Result<()> {
        let unsupported = KEYS
            .iter()
            .find(|key| !classes.iter().any(|&class| key.is_supported_by(class)) && key.is_set(self));
        match unsupported {
            Some(key) => Err(Error::invalid_argument(format!(
                "`{}` is not supported by {}",
                key.name,
                classes.iter().map(|class| class.name()).collect::<Vec<_>>().join(", ")
            ))),
            None => Ok(()),
        }
    }

    /// Returns the arguments that the pipeline supports.
    #[must_use]
    pub fn for_pipeline(&self, class: PipelineClass) -> Self {
        let (mut all, mut supported) = (self.clone(), Self::default());
        for key in KEYS.iter().filter(|key| key.is_supported_by(class)) {
            key.fill(&mut supported, &mut all);
        }
        supported
    }

    /// Fills absent keys from `defaults`.
    ///
    /// Keys that belong together are not mixed: a request with one of `num_inference_steps`, `timesteps` and `sigmas` gets
    /// none of the three from `defaults`, and a request with another `output_format` gets no `quality`.
    #[must_use]
    pub fn with_defaults(mut self, defaults: &Self) -> Self {
        let mut defaults = defaults.clone();
        if self.num_inference_steps.is_some() || self.timesteps.is_some() || self.sigmas.is_some() {
            defaults.num_inference_steps = None;
            defaults.timesteps = None;
            defaults.sigmas = None;
        }
        if self.output_format.is_some() && self.output_format != defaults.output_format {
            defaults.quality = None;
        }
        for key in &KEYS {
            key.fill(&mut self, &mut defaults);
        }
        self
    }
}

/// Creates the error for bytes that are not UTF-8.
pub(crate) fn not_utf8(error: &std::str::Utf8Error) -> Error {
    Error::invalid_argument(format!("not valid UTF-8 at byte {}", error.valid_up_to()))
}

fn not_an_object(error: &serde_json::Error) -> Error {
    Error::invalid_argument(match error.classify() {
        Category::Data => "must be one JSON object".into(),
        Category::Io | Category::Syntax | Category::Eof => {
            format!("not valid JSON at line {}, column {}", error.line(), error.column())
        }
    })
}

fn unknown_key(name: &str) -> Error {
    if matches!(
        name,
        "prompt" | "negative_prompt" | "image" | "mask_image" | "depth_map"
    ) {
        return Error::invalid_argument(format!("`{name}` is an input tensor, not a key of gen_args"));
    }
    let hint = did_you_mean(name, KEYS.iter().map(|key| key.name));
    Error::invalid_argument(if is_plain_key(name) {
        format!("unknown key `{name}`{hint}")
    } else {
        format!("an unknown key{hint}")
    })
}
