//! What a request for Stable Diffusion XL has besides: a second pair of prompts, and sizes.

use serde_json::{Value, json};

use crate::gen_args::GenArgs;
use diffusion_core::config::PipelineClass;

/// Height and width, or top and left, in pixels.
type Pair = [u32; 2];

/// The six numbers that the UNet takes (diffusers' `add_time_ids`): original size, top left corner, target size.
pub type TimeIds = [u32; 6];

/// What Stable Diffusion XL takes besides.
///
/// Source: `encode_prompt` and `_get_add_time_ids` of diffusers' `pipelines/stable_diffusion_xl/`.
#[derive(Debug, Clone, PartialEq)]
pub struct XlInputs {
    /// The prompt of the second text encoder; `None` for that of the first.
    pub prompt_2: Option<String>,
    /// The negative prompt of the second text encoder; `None` for that of the first.
    pub negative_prompt_2: Option<String>,
    /// Whether the request has a negative prompt, which may be empty. Without one, a model with
    /// `force_zeros_for_empty_prompt` takes zeros.
    pub has_negative_prompt: bool,
    /// The sizes for the prompt.
    pub time_ids: TimeIds,
    /// The sizes for the negative prompt.
    pub negative_time_ids: TimeIds,
    /// The keys of the sizes as the request gave them.
    given: Vec<(&'static str, Pair)>,
}

impl XlInputs {
    /// Takes the arguments of a request for an image of that height and width.
    pub(crate) fn new(
        class: PipelineClass,
        args: &GenArgs,
        (height, width): (u32, u32),
        has_negative_prompt: bool,
    ) -> Self {
        let size = [height, width];
        let ids = |original: Pair, crop: Pair, target: Pair| -> TimeIds {
            [original[0], original[1], crop[0], crop[1], target[0], target[1]]
        };
        let original = args.original_size.unwrap_or(size);
        let crop = args.crops_coords_top_left.unwrap_or_default();
        let target = args.target_size.unwrap_or(size);
        let negative_crop = args.negative_crops_coords_top_left.unwrap_or_default();
        let time_ids = ids(original, crop, target);
        let negative_original = args.negative_original_size;
        let negative_target = args.negative_target_size;
        let negative_time_ids = match (class, negative_original, negative_target) {
            // Text to image takes the negative sizes together or not at all.
            (PipelineClass::StableDiffusionXl, Some(original), Some(target)) => ids(original, negative_crop, target),
            (PipelineClass::StableDiffusionXl, ..) => time_ids,
            // The others ignore `negative_crops_coords_top_left`.
            _ => ids(
                negative_original.unwrap_or(original),
                crop,
                negative_target.unwrap_or(target),
            ),
        };
        let given = [
            ("original_size", args.original_size),
            ("crops_coords_top_left", args.crops_coords_top_left),
            ("target_size", args.target_size),
            ("negative_original_size", args.negative_original_size),
            ("negative_crops_coords_top_left", args.negative_crops_coords_top_left),
            ("negative_target_size", args.negative_target_size),
        ];
        Self {
            prompt_2: args.prompt_2.clone(),
            negative_prompt_2: args.negative_prompt_2.clone(),
            has_negative_prompt,
            time_ids,
            negative_time_ids,
            given: given.into_iter().filter_map(|(key, pair)| Some((key, pair?))).collect(),
        }
    }

    /// Returns the size of the texts in bytes.
    pub(crate) fn size(&self) -> usize {
        let texts = [&self.prompt_2, &self.negative_prompt_2];
        texts.into_iter().flatten().map(String::len).sum()
    }

    /// Returns the keys of `gen_args` that the request gave.
    pub(crate) fn gen_args(&self) -> Vec<(&'static str, Value)> {
        let texts = [
            ("prompt_2", &self.prompt_2),
            ("negative_prompt_2", &self.negative_prompt_2),
        ];
        let texts = texts
            .into_iter()
            .filter_map(|(key, text)| Some((key, json!(text.as_ref()?))));
        let pairs = self.given.iter().map(|(key, pair)| (*key, json!(pair)));
        texts.chain(pairs).collect()
    }
}
