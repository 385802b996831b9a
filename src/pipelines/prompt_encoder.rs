//! From prompts to the text embeddings that the UNet attends to.
//!
//! Sources: diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion.py` (`encode_prompt`) for plain prompts,
//! `examples/community/lpw_stable_diffusion.py` (`get_weighted_text_embeddings`) for weighted ones.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use crate::models::clip::{ClipTextModel, ClipTokenizer};
use crate::weights::SharedModel;
use diffusion_core::Result;
use diffusion_request::prompt_syntax::{PromptSyntax, parse_weighted};

/// The most calls of the text encoder for one weighted prompt (`max_embeddings_multiples` of the source), 225 tokens
/// with CLIP's 77. What is longer is cut off.
pub const MAX_CHUNKS: usize = 3;

/// The embeddings of a prompt and, with guidance, of its negative prompt.
pub struct PromptEmbeds {
    /// `[1, tokens, hidden_size]` in the text encoder's dtype, on its device. `tokens` is the tokenizer's `max_length`
    /// for plain prompts, and 1 to [`MAX_CHUNKS`] times that for weighted ones.
    pub prompt: Tensor,
    /// Of the same shape.
    pub negative: Option<Tensor>,
    /// Whether one of the two had more tokens than were encoded.
    pub truncated: bool,
}

/// A tokenizer and a text encoder.
pub struct PromptEncoder {
    tokenizer: Arc<ClipTokenizer>,
    text_encoder: SharedModel<ClipTextModel>,
    device: Device,
}

impl PromptEncoder {
    /// `device` is the one that the text encoder's weights are on; `tokenizer` makes ids of its vocabulary, no more
    /// than it has positions for.
    pub fn new(tokenizer: Arc<ClipTokenizer>, text_encoder: SharedModel<ClipTextModel>, device: Device) -> Self {
        Self {
            tokenizer,
            text_encoder,
            device,
        }
    }

    /// Encodes one prompt, and the negative prompt of a request with guidance.
    ///
    /// `clip_skip` is the number of the text encoder's last layers that are left out. As in the two sources, it is for
    /// the prompt alone if plain and for both if weighted.
    ///
    /// # Errors
    /// Those of [`parse_weighted`] for weighted prompts; out of memory; a tokenizer that fails.
    pub fn encode(
        &self,
        prompt: &str,
        negative: Option<&str>,
        syntax: PromptSyntax,
        clip_skip: usize,
    ) -> Result<PromptEmbeds> {
        match syntax {
            PromptSyntax::Plain => self.encode_plain(prompt, negative, clip_skip),
            PromptSyntax::Weighted => self.encode_weighted(prompt, negative, clip_skip),
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

    fn encode_weighted(&self, prompt: &str, negative: Option<&str>, clip_skip: usize) -> Result<PromptEmbeds> {
        let prompt = self.weighted_tokens(prompt)?;
        let negative = negative.map(|text| self.weighted_tokens(text)).transpose()?;
        // The UNet takes both in one call, so the longer one decides.
        let longest = negative
            .as_ref()
            .map_or(0, |tokens| tokens.ids.len())
            .max(prompt.ids.len());
        let chunks = longest.div_ceil(self.room()).max(1);
        Ok(PromptEmbeds {
            prompt: self.weighted_states(&prompt, chunks, clip_skip)?,
            truncated: prompt.truncated || negative.as_ref().is_some_and(|tokens| tokens.truncated),
            negative: negative
                .map(|tokens| self.weighted_states(&tokens, chunks, clip_skip))
                .transpose()?,
        })
    }

    /// Tokens of text in one call of the text encoder: all but begin and end.
    fn room(&self) -> usize {
        self.tokenizer.max_length() - 2
    }

    /// `[1, ids, hidden_size]`.
    fn hidden_states(&self, ids: &[i64], clip_skip: usize) -> Result<Tensor> {
        let ids = Tensor::f_from_slice(ids)?.f_unsqueeze(0)?.f_to_device(self.device)?;
        self.text_encoder.forward(&ids, clip_skip)
    }

    /// The tokens of a prompt, each with the weight of the piece that it comes from. Pieces are tokenized one by one, so
    /// that a word that changes its weight in the middle is two words.
    fn weighted_tokens(&self, prompt: &str) -> Result<WeightedTokens> {
        let limit = self.room() * MAX_CHUNKS;
        let mut tokens = WeightedTokens::default();
        for (text, weight) in parse_weighted(prompt)? {
            let ids = self.tokenizer.encode_unpadded(&text)?;
            let weights = std::iter::repeat_n(weight as f32, ids.len());
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

    /// The hidden states of each chunk one behind the other, times the weights, times what brings the mean back to what
    /// it was without the weights.
    fn weighted_states(&self, tokens: &WeightedTokens, chunks: usize, clip_skip: usize) -> Result<Tensor> {
        let room = self.room();
        let mut states = Vec::with_capacity(chunks);
        let mut weights: Vec<f32> = Vec::with_capacity(chunks * self.tokenizer.max_length());
        for chunk in 0..chunks {
            let own = |of: usize| (chunk * room).min(of)..((chunk + 1) * room).min(of);
            // Each chunk begins and ends as a text does; padding comes before the end, also where it is another token.
            let mut ids = vec![self.tokenizer.bos()];
            ids.extend(tokens.ids.get(own(tokens.ids.len())).unwrap_or_default());
            ids.resize(room + 1, self.tokenizer.pad());
            ids.push(self.tokenizer.eos());
            states.push(self.hidden_states(&ids, clip_skip)?);
            weights.push(1.0);
            weights.extend(tokens.weights.get(own(tokens.weights.len())).unwrap_or_default());
            weights.resize((chunk + 1) * (room + 2), 1.0);
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
