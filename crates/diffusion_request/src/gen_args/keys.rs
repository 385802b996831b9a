//! The vocabulary of `gen_args`: each key with its type, its range, its field and the pipelines that support it.

use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

use super::GenArgs;
use crate::decoder::Decoder;
use crate::loras::{LoraRequest, MAX_LORAS};
use crate::preview::Preview;
use crate::prompt_syntax::PromptSyntax;
use diffusion_core::config::{Format, PipelineClass};
use diffusion_core::{Error, Result};

use PipelineClass::{
    Depth2Img, Img2Img, Img2ImgXl, Inpaint, InpaintXl, LatentConsistency, StableDiffusion, StableDiffusionXl, Upscale,
};

/// One key of `gen_args`.
pub struct Key {
    /// The key.
    pub name: &'static str,
    /// Type, range and field.
    kind: Kind,
    /// The pipelines that support the key.
    pipelines: &'static [PipelineClass],
}

/// A field of [`GenArgs`].
type Field<T> = fn(&mut GenArgs) -> &mut Option<T>;

/// The type and range of a key, with its field.
enum Kind {
    /// An integer in a range.
    Int(RangeInclusive<u64>, Field<u64>),
    /// A size in pixels: a multiple of 8; 0 means null, as in diffusers.
    Size(Field<u64>),
    /// A finite number in a range, or a JSON integer.
    Float(RangeInclusive<f64>, Field<f64>),
    /// true or false.
    Bool(Field<bool>),
    /// The class name of a scheduler; the validator checks the name.
    ClassName(Field<String>),
    /// A file format.
    Format(Field<Format>),
    /// A prompt syntax.
    PromptSyntax(Field<PromptSyntax>),
    /// A decoder.
    Decoder(Field<Decoder>),
    /// Strictly descending timesteps.
    Timesteps(Field<Vec<i64>>),
    /// Positive noise levels.
    Sigmas(Field<Vec<f64>>),
    /// LoRAs with their scales.
    Loras(Field<Vec<LoraRequest>>),
    /// How previews are made.
    Preview(Field<Preview>),
    /// A text.
    Text(Field<String>),
    /// Two integers from a smallest one on: height and width, or top and left.
    Pair(u32, Field<[u32; 2]>),
}

const ALL: &[PipelineClass] = &PipelineClass::ALL;
const SIZED: &[PipelineClass] = &[
    StableDiffusion,
    LatentConsistency,
    Inpaint,
    StableDiffusionXl,
    InpaintXl,
];
const FROM_IMAGE: &[PipelineClass] = &[Img2Img, Depth2Img, Inpaint, Img2ImgXl, InpaintXl];
const MASKED: &[PipelineClass] = &[Inpaint, InpaintXl];
const XL: &[PipelineClass] = &[StableDiffusionXl, Img2ImgXl, InpaintXl];
/// Stable Diffusion XL has neither weighted prompts nor LoRAs yet.
const NOT_XL: &[PipelineClass] = &[StableDiffusion, LatentConsistency, Img2Img, Depth2Img, Inpaint, Upscale];
const SCHEDULED: &[PipelineClass] = &[
    StableDiffusion,
    Img2Img,
    Inpaint,
    StableDiffusionXl,
    Img2ImgXl,
    InpaintXl,
];
/// As [`SCHEDULED`], with the pipeline that has no `sigmas`.
const TIMED: &[PipelineClass] = &[
    StableDiffusion,
    LatentConsistency,
    Img2Img,
    Inpaint,
    StableDiffusionXl,
    Img2ImgXl,
    InpaintXl,
];
/// The upscaler's large images have tiles and chunks, which neither the deep cache nor the tiny decoder has.
const APPROXIMATED: &[PipelineClass] = &[
    StableDiffusion,
    LatentConsistency,
    Img2Img,
    Depth2Img,
    Inpaint,
    StableDiffusionXl,
    Img2ImgXl,
    InpaintXl,
];

/// Number of timesteps that every supported family was trained with (`num_train_timesteps`).
const TRAIN_TIMESTEPS: usize = 1000;
/// Largest custom sigma. The largest sigma of the supported families is 14.6, or 4096 with a zero terminal SNR.
const MAX_SIGMA: f64 = 10_000.0;
/// Largest side of an image that a size describes, in pixels.
const MAX_SIDE: u32 = 65_536;

/// Every key of `gen_args`.
pub static KEYS: [Key; 34] = [
    key(
        "num_inference_steps",
        ALL,
        Kind::Int(1..=1000, |a| &mut a.num_inference_steps),
    ),
    // diffusers accepts any number. Everything up to 1.0 means no guidance; above 100, images are rounding errors.
    key(
        "guidance_scale",
        ALL,
        Kind::Float(0.0..=100.0, |a| &mut a.guidance_scale),
    ),
    key("height", SIZED, Kind::Size(|a| &mut a.height)),
    key("width", SIZED, Kind::Size(|a| &mut a.width)),
    key("strength", FROM_IMAGE, Kind::Float(0.0..=1.0, |a| &mut a.strength)),
    // 350 is `max_noise_level` of the x4 upscaler.
    key("noise_level", &[Upscale], Kind::Int(0..=350, |a| &mut a.noise_level)),
    key(
        "num_images_per_prompt",
        ALL,
        Kind::Int(1..=256, |a| &mut a.num_images_per_prompt),
    ),
    key("eta", ALL, Kind::Float(0.0..=1.0, |a| &mut a.eta)),
    key(
        "guidance_rescale",
        &[StableDiffusion, StableDiffusionXl, Img2ImgXl, InpaintXl],
        Kind::Float(0.0..=1.0, |a| &mut a.guidance_rescale),
    ),
    key("clip_skip", ALL, Kind::Int(0..=1000, |a| &mut a.clip_skip)),
    key("timesteps", TIMED, Kind::Timesteps(|a| &mut a.timesteps)),
    key("sigmas", SCHEDULED, Kind::Sigmas(|a| &mut a.sigmas)),
    key(
        "padding_mask_crop",
        MASKED,
        Kind::Int(0..=65_536, |a| &mut a.padding_mask_crop),
    ),
    key("seed", ALL, Kind::Int(0..=i64::MAX as u64, |a| &mut a.seed)),
    key("scheduler", ALL, Kind::ClassName(|a| &mut a.scheduler)),
    key("output_format", ALL, Kind::Format(|a| &mut a.output_format)),
    key("quality", ALL, Kind::Int(1..=100, |a| &mut a.quality)),
    key("keep_unmasked", MASKED, Kind::Bool(|a| &mut a.keep_unmasked)),
    key("prompt_syntax", NOT_XL, Kind::PromptSyntax(|a| &mut a.prompt_syntax)),
    // At 5, images of 30 steps are at 25 dB PSNR of those without the cache, on the demo.
    key("deep_cache", APPROXIMATED, Kind::Int(1..=10, |a| &mut a.deep_cache)),
    key("decoder", APPROXIMATED, Kind::Decoder(|a| &mut a.decoder)),
    key("loras", NOT_XL, Kind::Loras(|a| &mut a.loras)),
    // At most a day.
    key("timeout_ms", ALL, Kind::Int(1..=86_400_000, |a| &mut a.timeout_ms)),
    key("progress_every", ALL, Kind::Int(0..=1000, |a| &mut a.progress_every)),
    key("preview", ALL, Kind::Preview(|a| &mut a.preview)),
    key("describe", ALL, Kind::Bool(|a| &mut a.describe)),
    key("prompt_2", XL, Kind::Text(|a| &mut a.prompt_2)),
    key("negative_prompt_2", XL, Kind::Text(|a| &mut a.negative_prompt_2)),
    key("original_size", XL, Kind::Pair(1, |a| &mut a.original_size)),
    key(
        "crops_coords_top_left",
        XL,
        Kind::Pair(0, |a| &mut a.crops_coords_top_left),
    ),
    key("target_size", XL, Kind::Pair(1, |a| &mut a.target_size)),
    key(
        "negative_original_size",
        XL,
        Kind::Pair(1, |a| &mut a.negative_original_size),
    ),
    key(
        "negative_crops_coords_top_left",
        XL,
        Kind::Pair(0, |a| &mut a.negative_crops_coords_top_left),
    ),
    key(
        "negative_target_size",
        XL,
        Kind::Pair(1, |a| &mut a.negative_target_size),
    ),
];

const fn key(name: &'static str, pipelines: &'static [PipelineClass], kind: Kind) -> Key {
    Key { name, kind, pipelines }
}

impl Key {
    /// Describes the valid values, in words that follow "must be".
    pub fn expects(&self) -> String {
        match &self.kind {
            Kind::Int(range, _) => {
                format!("an integer from {} to {}", range.start(), range.end())
            }
            Kind::Size(_) => "an integer that is a multiple of 8".into(),
            Kind::Float(range, _) => format!("a number from {} to {}", range.start(), range.end()),
            Kind::Bool(_) => "true or false".into(),
            Kind::ClassName(_) => "the class name of a diffusers scheduler".into(),
            Kind::Format(_) => format!("one of {}", Format::ALL.map(|(name, _)| name).join(", ")),
            Kind::PromptSyntax(_) => {
                format!("one of {}", PromptSyntax::ALL.map(|(name, _)| name).join(", "))
            }
            Kind::Decoder(_) => format!("one of {}", Decoder::ALL.map(|(name, _)| name).join(", ")),
            Kind::Preview(_) => format!("one of {}", Preview::ALL.map(|(name, _)| name).join(", ")),
            Kind::Text(_) => "a text".into(),
            Kind::Pair(least, _) => format!("a list of two integers from {least} to {MAX_SIDE}"),
            Kind::Timesteps(_) => format!(
                "a list of 1 to {TRAIN_TIMESTEPS} integers from 0 to {}, strictly descending",
                TRAIN_TIMESTEPS - 1
            ),
            Kind::Sigmas(_) => {
                format!("a list of 1 to {TRAIN_TIMESTEPS} numbers above 0 and at most {MAX_SIGMA}")
            }
            Kind::Loras(_) => format!(
                "a list of up to {MAX_LORAS} objects, each with a `name` of letters, digits, `.`, `_` and `-` that no other \
                 has, and with a `scale` and a `text_encoder_scale` from -10 to 10 if wanted"
            ),
        }
    }

    /// Returns a JSON schema of the valid values.
    pub(crate) fn schema(&self) -> Map<String, Value> {
        fn names<T, const N: usize>(all: [(&str, T); N]) -> Value {
            json!({ "type": "string", "enum": all.map(|(name, _)| name).to_vec() })
        }
        let schema = match &self.kind {
            Kind::Int(range, _) => json!({ "type": "integer", "minimum": range.start(), "maximum": range.end() }),
            Kind::Size(_) => json!({ "type": "integer", "minimum": 8, "multipleOf": 8 }),
            Kind::Float(range, _) => json!({ "type": "number", "minimum": range.start(), "maximum": range.end() }),
            Kind::Bool(_) => json!({ "type": "boolean" }),
            Kind::ClassName(_) => json!({ "type": "string" }),
            Kind::Format(_) => names(Format::ALL),
            Kind::PromptSyntax(_) => names(PromptSyntax::ALL),
            Kind::Decoder(_) => names(Decoder::ALL),
            Kind::Preview(_) => names(Preview::ALL),
            Kind::Text(_) => json!({ "type": "string" }),
            Kind::Pair(least, _) => json!({
                "type": "array",
                "items": { "type": "integer", "minimum": least, "maximum": MAX_SIDE },
                "minItems": 2,
                "maxItems": 2,
            }),
            Kind::Timesteps(_) | Kind::Sigmas(_) => {
                json!({ "type": "array", "minItems": 1, "maxItems": TRAIN_TIMESTEPS })
            }
            Kind::Loras(_) => json!({ "type": "array", "maxItems": MAX_LORAS }),
        };
        match schema {
            Value::Object(schema) => schema,
            _ => Map::new(),
        }
    }

    /// Returns whether pipelines of that class support the key.
    pub fn is_supported_by(&self, class: PipelineClass) -> bool {
        self.pipelines.contains(&class)
    }

    /// Checks a non-null `value` and stores it.
    pub(super) fn store(&self, value: &Value, args: &mut GenArgs) -> Result<()> {
        let stored = match &self.kind {
            Kind::Int(range, field) => set(field(args), as_int(value, range)),
            Kind::Size(field) => match value.as_u64().filter(|n| n % 8 == 0) {
                Some(0) => true,
                size => set(field(args), size),
            },
            Kind::Float(range, field) => {
                let number = value.as_f64().filter(|n| range.contains(n));
                set(field(args), number)
            }
            Kind::Bool(field) => set(field(args), value.as_bool()),
            Kind::ClassName(field) => set(field(args), value.as_str().map(str::to_owned)),
            Kind::Format(field) => {
                let format = Format::ALL.into_iter().find(|(name, _)| value == name);
                set(field(args), format.map(|(_, format)| format))
            }
            Kind::PromptSyntax(field) => {
                let syntax = PromptSyntax::ALL.into_iter().find(|(name, _)| value == name);
                set(field(args), syntax.map(|(_, syntax)| syntax))
            }
            Kind::Decoder(field) => {
                let decoder = Decoder::ALL.into_iter().find(|(name, _)| value == name);
                set(field(args), decoder.map(|(_, decoder)| decoder))
            }
            Kind::Timesteps(field) => set(field(args), as_timesteps(value)),
            Kind::Sigmas(field) => set(field(args), as_sigmas(value)),
            Kind::Loras(field) => set(field(args), LoraRequest::list(value)),
            Kind::Preview(field) => {
                let preview = Preview::ALL.into_iter().find(|(name, _)| value == name);
                set(field(args), preview.map(|(_, preview)| preview))
            }
            Kind::Text(field) => set(field(args), value.as_str().map(str::to_owned)),
            Kind::Pair(least, field) => set(field(args), as_pair(value, *least)),
        };
        if stored {
            Ok(())
        } else {
            Err(Error::invalid_argument(format!(
                "`{}` must be {}",
                self.name,
                self.expects()
            )))
        }
    }

    /// Returns whether `args` has a value for the key.
    pub(super) fn is_set(&self, args: &GenArgs) -> bool {
        let mut value = GenArgs::default();
        self.fill(&mut value, &mut args.clone());
        value != GenArgs::default()
    }

    /// Moves the value of the key from `from` to `to`, unless `to` has one.
    pub(super) fn fill(&self, to: &mut GenArgs, from: &mut GenArgs) {
        fn fill<T>(field: Field<T>, to: &mut GenArgs, from: &mut GenArgs) {
            let (to, from) = (field(to), field(from));
            if to.is_none() {
                *to = from.take();
            }
        }
        match &self.kind {
            Kind::Int(_, field) | Kind::Size(field) => fill(*field, to, from),
            Kind::Float(_, field) => fill(*field, to, from),
            Kind::Bool(field) => fill(*field, to, from),
            Kind::ClassName(field) => fill(*field, to, from),
            Kind::Format(field) => fill(*field, to, from),
            Kind::PromptSyntax(field) => fill(*field, to, from),
            Kind::Decoder(field) => fill(*field, to, from),
            Kind::Timesteps(field) => fill(*field, to, from),
            Kind::Sigmas(field) => fill(*field, to, from),
            Kind::Loras(field) => fill(*field, to, from),
            Kind::Preview(field) => fill(*field, to, from),
            Kind::Text(field) => fill(*field, to, from),
            Kind::Pair(_, field) => fill(*field, to, from),
        }
    }
}

/// Stores `value` and returns whether there is one.
fn set<T>(field: &mut Option<T>, value: Option<T>) -> bool {
    *field = value;
    field.is_some()
}

/// Reads a JSON integer in a range. `50.0` is a float, as in Python.
fn as_int(value: &Value, range: &RangeInclusive<u64>) -> Option<u64> {
    value.as_u64().filter(|n| range.contains(n))
}

/// Reads a list of two integers from `least` to [`MAX_SIDE`].
fn as_pair(value: &Value, least: u32) -> Option<[u32; 2]> {
    let list = value.as_array()?.iter();
    let sides: Option<Vec<u32>> = list
        .map(|side| {
            u32::try_from(side.as_u64()?)
                .ok()
                .filter(|side| (least..=MAX_SIDE).contains(side))
        })
        .collect();
    sides?.try_into().ok()
}

/// Reads a list of 1 to [`TRAIN_TIMESTEPS`] elements.
fn as_list<T>(value: &Value, element: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    let list = value.as_array()?;
    if !(1..=TRAIN_TIMESTEPS).contains(&list.len()) {
        return None;
    }
    list.iter().map(element).collect()
}

fn as_timesteps(value: &Value) -> Option<Vec<i64>> {
    let range = 0..TRAIN_TIMESTEPS as i64;
    let list = as_list(value, |t| t.as_i64().filter(|t| range.contains(t)))?;
    list.is_sorted_by(|a, b| a > b).then_some(list)
}

fn as_sigmas(value: &Value) -> Option<Vec<f64>> {
    as_list(value, |sigma| sigma.as_f64().filter(|s| *s > 0.0 && *s <= MAX_SIGMA))
}
