//! `gen_args`: the one JSON object in which a request gives the pipeline's call arguments, under diffusers' names.
//!
//! [`KEYS`] is the whole vocabulary. It drives the parsing, the text of the errors, the search for the nearest key and
//! the question which pipeline takes what. Errors name keys and limits and never quote a value: what they say is made
//! of text from here, of numbers, and of an unknown key that is plain enough to be harmless.

mod keys;
#[cfg(test)]
mod tests;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;

use super::prompt_syntax::PromptSyntax;
use diffusion_core::config::{Format, PipelineClass};
use diffusion_core::quoting::is_plain_key;
use diffusion_core::suggest::did_you_mean;
use diffusion_core::{Error, Result};

pub use keys::{KEYS, Key};

/// Arguments as a request gave them: `None` is an absent or null key, for which the default holds.
///
/// Types and the fixed ranges of [`KEYS`] have been checked; what depends on the model has not.
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
    /// Noise added to the image that is enlarged, 0 to 350.
    pub noise_level: Option<u64>,
    /// Images made from one prompt, 1 to 256.
    pub num_images_per_prompt: Option<u64>,
    /// DDIM's noise weight, 0 to 1.
    pub eta: Option<f64>,
    /// Share of the rescaled noise prediction, 0 to 1.
    pub guidance_rescale: Option<f64>,
    /// Last text encoder layers to leave out.
    pub clip_skip: Option<u64>,
    /// Custom timesteps, each 0 to 999, strictly descending.
    pub timesteps: Option<Vec<i64>>,
    /// Custom noise levels, each above 0.
    pub sigmas: Option<Vec<f64>>,
    /// Margin around the mask to which the image is cropped, in pixels.
    pub padding_mask_crop: Option<u64>,
    /// Seed of the noise, 0 to 2^63-1.
    pub seed: Option<u64>,
    /// Class name of a diffusers scheduler; not yet known to be a supported one.
    pub scheduler: Option<String>,
    /// File format of the images.
    pub output_format: Option<Format>,
    /// Quality of a JPEG or WebP, 1 to 100.
    pub quality: Option<u64>,
    /// Whether pixels outside the mask are copied from the input.
    pub keep_unmasked: Option<bool>,
    /// What brackets in the prompts mean.
    pub prompt_syntax: Option<PromptSyntax>,
}

/// The pairs of a JSON object in their order, so that a key that is given twice is seen.
pub struct Pairs(pub Vec<(String, Value)>);

impl<'de> serde::Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct PairsVisitor;
        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor)
    }
}

impl GenArgs {
    /// Parses and checks the text of one `gen_args` element. Text of white space alone is no arguments.
    ///
    /// Whether the pipeline takes the keys, and the limits of the model, are for the
    /// [`RequestContext`](super::resolve::RequestContext) to check.
    ///
    /// # Errors
    /// InvalidArgument for text longer than `max_bytes`, text that is not one JSON object, a key that is unknown or
    /// given twice, a wrong type and a value out of range; Unsupported for what this version does not do. The text
    /// names the key but not the input: the caller adds that with [`Error::context`].
    pub fn parse(text: &[u8], max_bytes: usize) -> Result<Self> {
        if text.len() > max_bytes {
            return Err(Error::invalid_argument(format!(
                "{} bytes are more than the {max_bytes} that are allowed",
                text.len()
            )));
        }
        let text = std::str::from_utf8(text).map_err(|error| not_utf8(&error))?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let Pairs(pairs) = serde_json::from_str(text).map_err(|error| not_an_object(&error))?;
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

    /// Checks that one of the pipelines takes every argument that is given.
    ///
    /// # Errors
    /// InvalidArgument that names the key and the pipelines.
    pub fn check_taken_by(&self, classes: &[PipelineClass]) -> Result<()> {
        let mut args = self.clone();
        let stray = KEYS
            .iter()
            .find(|key| !classes.iter().any(|&class| key.is_taken_by(class)) && key.is_set(&mut args));
        match stray {
            Some(key) => Err(Error::invalid_argument(format!(
                "`{}` is not taken by {}",
                key.name,
                classes.iter().map(|class| class.name()).collect::<Vec<_>>().join(", ")
            ))),
            None => Ok(()),
        }
    }

    /// Those arguments that the pipeline takes.
    #[must_use]
    pub fn taken_by(&self, class: PipelineClass) -> Self {
        let (mut all, mut taken) = (self.clone(), Self::default());
        for key in KEYS.iter().filter(|key| key.is_taken_by(class)) {
            key.fill(&mut taken, &mut all);
        }
        taken
    }

    /// These arguments, and those of `defaults` for the keys that they do not give.
    ///
    /// Keys that decide one thing together go together: a request that gives one of `num_inference_steps`, `timesteps`
    /// and `sigmas` takes none of them from `defaults`, and one that gives another `output_format` takes no `quality`.
    #[must_use]
    pub fn or(mut self, defaults: &Self) -> Self {
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

/// The error for bytes that are not UTF-8.
pub(super) fn not_utf8(error: &std::str::Utf8Error) -> Error {
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
        return Error::invalid_argument(format!("`{name}` is an input tensor and not a key of gen_args"));
    }
    let hint = did_you_mean(name, KEYS.iter().map(|key| key.name));
    Error::invalid_argument(if is_plain_key(name) {
        format!("unknown key `{name}`{hint}")
    } else {
        format!("an unknown key{hint}")
    })
}
