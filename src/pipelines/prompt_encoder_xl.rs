//! Encoding of prompts for Stable Diffusion XL: the states of two text encoders, and the pooled state of the second.
//!
//! Source: diffusers `pipelines/stable_diffusion_xl/pipeline_stable_diffusion_xl.py` (`encode_prompt`).

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use tch::Tensor;

use crate::models::clip::{ClipTextModel, ClipTokenizer};
use crate::models::layers::BatchSplit;
use crate::torch::Stream;
use crate::weights::SharedModel;
use diffusion_core::{Context, Error, Result};
use diffusion_request::{Prompts, XlInputs};

/// Encoded prompts that are kept. One has 77 tokens of 2048 numbers, 315 to 631 kB.
const CACHED_TEXTS: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// A tokenizer with its text encoder.
#[derive(Clone)]
pub struct TextEncoder {
    /// The tokenizer.
    pub tokenizer: Arc<ClipTokenizer>,
    /// The text encoder.
    pub model: SharedModel<ClipTextModel>,
}

/// The states of a prompt.
#[derive(Debug)]
pub struct XlStates {
    /// `[1, tokens, sum of the hidden sizes]`.
    pub states: Tensor,
    /// `[1, projection_dim]`.
    pub pooled: Tensor,
}

/// The states of a prompt and, with guidance, of its negative prompt.
#[derive(Debug)]
pub struct XlPromptEmbeds {
    /// Of the prompt.
    pub prompt: XlStates,
    /// Of the negative prompt.
    pub negative: Option<XlStates>,
    /// Whether one of the texts was truncated.
    pub truncated: bool,
}

/// Two tokenizers and text encoders, with a cache of encoded texts.
pub struct XlPromptEncoder {
    encoders: [TextEncoder; 2],
    /// Whether an absent negative prompt is encoded as zeros.
    zeros_for_absent: bool,
    encoded: LruCache<EncodedTexts, XlStates>,
}

/// The ids for both encoders, and the number of skipped layers.
type EncodedTexts = ([Vec<i64>; 2], usize);

impl XlPromptEncoder {
    /// Creates an encoder. The second text encoder has a projection.
    pub fn new(encoders: [TextEncoder; 2], zeros_for_absent: bool) -> Self {
        Self {
            encoders,
            zeros_for_absent,
            encoded: LruCache::new(CACHED_TEXTS),
        }
    }

    /// Encodes the prompts and, if `guided`, the negative prompts. `clip_skip` is the number of further layers to skip, for
    /// the prompts alone.
    ///
    /// # Errors
    /// Internal if a tokenizer fails.
    pub fn encode(
        &mut self,
        prompts: &Prompts,
        xl: &XlInputs,
        guided: bool,
        clip_skip: usize,
        stream: &Stream,
    ) -> Result<XlPromptEmbeds> {
        let second = xl.prompt_2.as_deref().filter(|text| !text.is_empty());
        let texts = [prompts.prompt.as_str(), second.unwrap_or(&prompts.prompt)];
        let (prompt, mut truncated) = self.states(texts, clip_skip, stream).context(|| "prompt")?;
        let negative = if !guided {
            None
        } else if !xl.has_negative_prompt && self.zeros_for_absent {
            Some(XlStates {
                states: prompt.states.f_zeros_like()?,
                pooled: prompt.pooled.f_zeros_like()?,
            })
        } else {
            let second = xl.negative_prompt_2.as_deref().filter(|text| !text.is_empty());
            let negative = prompts.negative_prompt.as_str();
            let texts = [negative, second.unwrap_or(negative)];
            let (states, cut) = self.states(texts, 0, stream).context(|| "negative_prompt")?;
            truncated |= cut;
            Some(states)
        };
        Ok(XlPromptEmbeds {
            prompt,
            negative,
            truncated,
        })
    }

    /// Encodes one text with each encoder. Returns whether one was truncated, too.
    fn states(&mut self, texts: [&str; 2], clip_skip: usize, stream: &Stream) -> Result<(XlStates, bool)> {
        let [first, second] = &self.encoders;
        let first = first.tokenizer.encode(texts[0])?;
        let second = second.tokenizer.encode(texts[1])?;
        let truncated = first.truncated || second.truncated;
        let key = ([first.ids, second.ids], clip_skip);
        if let Some(known) = self.encoded.get(&key) {
            return Ok((known.shallow_clone(), truncated));
        }
        let mut parts = Vec::with_capacity(2);
        let mut pooled = None;
        for (encoder, ids) in self.encoders.iter().zip(&key.0) {
            let ids = stream.to_device(&Tensor::f_from_slice(ids)?.f_unsqueeze(0)?)?;
            let encoded = encoder
                .model
                .forward_penultimate(&ids, None, clip_skip, BatchSplit::Joint)?;
            parts.push(encoded.states);
            pooled = encoded.pooled;
        }
        let states = XlStates {
            states: Tensor::f_cat(&parts, -1)?,
            pooled: pooled.ok_or_else(|| Error::internal("the second text encoder has no projection"))?,
        };
        self.encoded.put(key, states.shallow_clone());
        Ok((states, truncated))
    }
}

impl XlStates {
    fn shallow_clone(&self) -> Self {
        Self {
            states: self.states.shallow_clone(),
            pooled: self.pooled.shallow_clone(),
        }
    }
}
