//! Encoding of prompts as the text embeddings that the UNet attends to.
//!
//! Sources: diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion.py` (`encode_prompt`) for plain prompts,
//! `examples/community/lpw_stable_diffusion.py` (`get_weighted_text_embeddings`) for weighted ones.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use crate::models::clip::{ClipTextModel, ClipTokenizer};
use crate::weights::SharedModel;
use diffusion_core::Result;
use diffusion_request::Prompts;

/// Most calls of the text encoder for one weighted prompt (`max_embeddings_multiples` of the source): 225 tokens with
/// CLIP's 77. Longer prompts are truncated.
pub const MAX_CHUNKS: usize = 3;

/// The embeddings of a prompt and, with guidance, of its negative prompt.
pub struct PromptEmbeds {
    /// `[1, tokens, hidden_size]` in the text encoder's dtype, on its device. `tokens` is the tokenizer's `max_length`
    /// for plain prompts, and 1 to [`MAX_CHUNKS`] times that for weighted ones.
    pub prompt: Tensor,
    /// Of the same shape as `prompt`.
    pub negative: Option<Tensor>,
    /// Whether one of the two was truncated.
    pub truncated: bool,
}

/// A tokenizer and a text encoder.
pub struct PromptEncoder {
    tokenizer: Arc<ClipTokenizer>,
    text_encoder: SharedModel<ClipTextModel>,
    device: Device,
}

impl PromptEncoder {
    /// Creates an encoder. `device` has the text encoder's weights; `tokenizer` has the text encoder's vocabulary and at
    /// most as many tokens as the text encoder has positions.
    pub fn new(tokenizer: Arc<ClipTokenizer>, text_encoder: SharedModel<ClipTextModel>, device: Device) -> Self {
        Self {
            tokenizer,
            text_encoder,
            device,
        }
    }

    /// Encodes the prompt and, if `guided`, the negative prompt.
    ///
    /// `clip_skip` is the number of the text encoder's last layers to skip. As in the two sources, it applies to the
    /// prompt only if plain and to both prompts if weighted.
    ///
    /// # Errors
    /// Internal if the tokenizer fails.
    pub fn encode(&self, prompts: &Prompts, guided: bool, clip_skip: usize) -> Result<PromptEmbeds> {
        match &prompts.weighted {
            None => {
                let negative = guided.then_some(prompts.negative_prompt.as_str());
                self.encode_plain(&prompts.prompt, negative, clip_skip)
            }
            Some((prompt, negative)) => self.encode_weighted(prompt, guided.then_some(negative), clip_skip),
        }
    }

    fn encode_plain(&self, prompt: &str, negative: Option<&str>, clip_skip: usize) -> Result<PromptEmbeds> {
        let prompt = self.tokenizer.encode(prompt)?;
        let negative = negative.map(|text| self.tokenizer.encode(text)).transpose()?;
        Ok(PromptEmbeds {
            prompt: self.hidden_states(&prompt.ids, clip_skip)?,
            truncated: prompt.truncated || negative.as_ref().is_some_and(|tokens| tokens.truncated),
            negative: negative.map(|tokens| self.hidden_states(&tokens.ids, 0)).transpose()?,
        })
    }

    fn encode_weighted(
        &self,
        prompt: &[(String, f64)],
        negative: Option<&Vec<(String, f64)>>,
        clip_skip: usize,
    ) -> Result<PromptEmbeds> {
        let prompt = self.weighted_tokens(prompt)?;
        let negative = negative.map(|text| self.weighted_tokens(text)).transpose()?;
        // Both are in one UNet call: the longer one decides.
        let longest = negative
            .as_ref()
            .map_or(0, |tokens| tokens.ids.len())
            .max(prompt.ids.len());
        let chunks = longest.div_ceil(self.tokens_per_chunk()).max(1);
        Ok(PromptEmbeds {
            prompt: self.weighted_states(&prompt, chunks, clip_skip)?,
            truncated: prompt.truncated || negative.as_ref().is_some_and(|tokens| tokens.truncated),
            negative: negative
                .map(|tokens| self.weighted_states(&tokens, chunks, clip_skip))
                .transpose()?,
        })
    }

    /// Returns the tokens of text in one call of the text encoder: all but begin and end.
    fn tokens_per_chunk(&self) -> usize {
        self.tokenizer.max_length() - 2
    }

    /// `[1, ids, hidden_size]`.
    fn hidden_states(&self, ids: &[i64], clip_skip: usize) -> Result<Tensor> {
        let ids = Tensor::f_from_slice(ids)?.f_unsqueeze(0)?.f_to_device(self.device)?;
        self.text_encoder.forward(&ids, clip_skip)
    }

    /// Tokenizes a prompt; each token has the weight of its fragment. Fragments are tokenized one by one: a word that
    /// changes its weight in the middle is two words.
    fn weighted_tokens(&self, fragments: &[(String, f64)]) -> Result<WeightedTokens> {
        let limit = self.tokens_per_chunk() * MAX_CHUNKS;
        let mut tokens = WeightedTokens::default();
        for (text, weight) in fragments {
            let ids = self.tokenizer.encode_unpadded(text)?;
            let weights = std::iter::repeat_n(*weight as f32, ids.len());
            tokens.weights.extend(weights);
            tokens.ids.extend(ids);
            if tokens.ids.len() > limit {
                tokens.ids.truncate(limit);
                tokens.weights.truncate(limit);
                tokens.truncated = true;
                break;
            }
        }
        Ok(tokens)
    }

    /// Returns the hidden states of all chunks, one after the other, times the weights, scaled to the mean that they have
    /// without weights.
    fn weighted_states(&self, tokens: &WeightedTokens, chunks: usize, clip_skip: usize) -> Result<Tensor> {
        let size = self.tokens_per_chunk();
        let mut states = Vec::with_capacity(chunks);
        let mut weights: Vec<f32> = Vec::with_capacity(chunks * self.tokenizer.max_length());
        for chunk in 0..chunks {
            let range = |of: usize| (chunk * size).min(of)..((chunk + 1) * size).min(of);
            // Each chunk begins and ends as a text does. Padding is before the end, also if the padding token differs.
            let mut ids = vec![self.tokenizer.bos()];
            ids.extend(tokens.ids.get(range(tokens.ids.len())).unwrap_or_default());
            ids.resize(size + 1, self.tokenizer.pad());
            ids.push(self.tokenizer.eos());
            states.push(self.hidden_states(&ids, clip_skip)?);
            weights.push(1.0);
            weights.extend(tokens.weights.get(range(tokens.weights.len())).unwrap_or_default());
            weights.resize((chunk + 1) * (size + 2), 1.0);
        }
        let states = Tensor::f_cat(&states, 1)?;
        let kind = states.kind();
        let weights = Tensor::f_from_slice(&weights)?
            .f_to_kind(kind)?
            .f_to_device(self.device)?
            .f_view([1, -1, 1])?;
        let mean = |states: &Tensor| -> Result<Tensor> {
            Ok(states
                .f_to_kind(Kind::Float)?
                .f_mean_dim(&[-2i64, -1][..], true, None)?
                .f_to_kind(kind)?)
        };
        let weighted = states.f_mul(&weights)?;
        let restore = mean(&states)?.f_div(&mean(&weighted)?)?;
        Ok(weighted.f_mul(&restore)?)
    }
}

/// Token ids without begin, end and padding, and as many weights.
#[derive(Default)]
struct WeightedTokens {
    ids: Vec<i64>,
    weights: Vec<f32>,
    truncated: bool,
}
