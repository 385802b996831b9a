//! Encoding of prompts as the text embeddings that the UNet attends to.
//!
//! Sources: diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion.py` (`encode_prompt`) for plain prompts,
//! `examples/community/lpw_stable_diffusion.py` (`get_weighted_text_embeddings`) for weighted ones.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use tch::{Device, Kind, Tensor};

use crate::adapters::JobAdapters;
use crate::models::clip::{ClipTextModel, ClipTokenizer};
use crate::models::layers::{AdaptedJobs, BatchSplit};
use crate::torch::Stream;
use crate::weights::SharedModel;
use diffusion_core::{Error, Result};
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

/// Encoded texts that are kept: the empty negative prompt above all, and prompts that clients send again. One has 77
/// tokens of 768 or 1024 numbers, 118 to 315 kB.
const CACHED_TEXTS: NonZeroUsize = NonZeroUsize::new(32).unwrap();

/// A tokenizer and a text encoder, with a cache of encoded texts.
pub struct PromptEncoder {
    tokenizer: Arc<ClipTokenizer>,
    text_encoder: SharedModel<ClipTextModel>,
    device: Device,
    /// `[1, ids, hidden_size]` each.
    encoded: LruCache<EncodedText, Tensor>,
}

/// The ids of a text, the number of skipped layers, and the adapters of the text encoder.
type EncodedText = (Vec<i64>, usize, Vec<(u64, u64)>);

/// What calls of the text encoder for one request have in common.
#[derive(Clone, Copy)]
struct EncoderCall<'a> {
    adapters: &'a JobAdapters,
    stream: &'a Stream,
}

impl PromptEncoder {
    /// Creates an encoder. `device` has the text encoder's weights; `tokenizer` has the text encoder's vocabulary and at
    /// most as many tokens as the text encoder has positions.
    pub fn new(tokenizer: Arc<ClipTokenizer>, text_encoder: SharedModel<ClipTextModel>, device: Device) -> Self {
        Self {
            tokenizer,
            text_encoder,
            device,
            encoded: LruCache::new(CACHED_TEXTS),
        }
    }

    /// Encodes the prompt and, if `guided`, the negative prompt.
    ///
    /// `clip_skip` is the number of the text encoder's last layers to skip. As in the two sources, it applies to the
    /// prompt only if plain and to both prompts if weighted. `adapters` change the text encoder.
    ///
    /// # Errors
    /// Internal if the tokenizer fails.
    pub fn encode(
        &mut self,
        prompts: &Prompts,
        guided: bool,
        clip_skip: usize,
        adapters: &JobAdapters,
        stream: &Stream,
    ) -> Result<PromptEmbeds> {
        let call = EncoderCall { adapters, stream };
        match &prompts.weighted {
            None => {
                let negative = guided.then_some(prompts.negative_prompt.as_str());
                self.encode_plain(&prompts.prompt, negative, clip_skip, call)
            }
            Some((prompt, negative)) => self.encode_weighted(prompt, guided.then_some(negative), clip_skip, call),
        }
    }

    fn encode_plain(
        &mut self,
        prompt: &str,
        negative: Option<&str>,
        clip_skip: usize,
        call: EncoderCall<'_>,
    ) -> Result<PromptEmbeds> {
        let prompt = self.tokenizer.encode(prompt)?;
        let negative = negative.map(|text| self.tokenizer.encode(text)).transpose()?;
        let truncated = prompt.truncated || negative.as_ref().is_some_and(|tokens| tokens.truncated);
        let texts = [(prompt.ids, clip_skip)]
            .into_iter()
            .chain(negative.map(|tokens| (tokens.ids, 0)));
        let mut states = self.hidden_states(texts.collect(), call)?.into_iter();
        Ok(PromptEmbeds {
            prompt: states
                .next()
                .ok_or_else(|| Error::internal("a prompt was not encoded"))?,
            negative: states.next(),
            truncated,
        })
    }

    fn encode_weighted(
        &mut self,
        prompt: &[(String, f64)],
        negative: Option<&Vec<(String, f64)>>,
        clip_skip: usize,
        call: EncoderCall<'_>,
    ) -> Result<PromptEmbeds> {
        let prompt = self.weighted_tokens(prompt)?;
        let negative = negative.map(|text| self.weighted_tokens(text)).transpose()?;
        // Both are in one UNet call: the longer one decides.
        let longest = negative
            .as_ref()
            .map_or(0, |tokens| tokens.ids.len())
            .max(prompt.ids.len());
        let chunks = longest.div_ceil(self.tokens_per_chunk()).max(1);
        let truncated = prompt.truncated || negative.as_ref().is_some_and(|tokens| tokens.truncated);
        let texts: Vec<&WeightedTokens> = std::iter::once(&prompt).chain(&negative).collect();
        let ids = texts
            .iter()
            .flat_map(|tokens| (0..chunks).map(|chunk| (self.chunk_ids(tokens, chunk), clip_skip)));
        let states = self.hidden_states(ids.collect(), call)?;
        let mut weighted = states
            .chunks(chunks)
            .zip(texts)
            .map(|(states, tokens)| self.weighted_states(states, tokens, call.stream));
        Ok(PromptEmbeds {
            prompt: weighted
                .next()
                .ok_or_else(|| Error::internal("a prompt was not encoded"))??,
            negative: weighted.next().transpose()?,
            truncated,
        })
    }

    /// Returns the tokens of text in one call of the text encoder: all but begin and end.
    fn tokens_per_chunk(&self) -> usize {
        self.tokenizer.max_length() - 2
    }

    /// Encodes texts of one length, each with a number of skipped layers, to `[1, ids, hidden_size]` each.
    fn hidden_states(&mut self, texts: Vec<(Vec<i64>, usize)>, call: EncoderCall<'_>) -> Result<Vec<Tensor>> {
        let EncoderCall { adapters, stream } = call;
        let adapted = adapters.text_encoder_key();
        let texts: Vec<EncodedText> = texts
            .into_iter()
            .map(|(ids, clip_skip)| (ids, clip_skip, adapted.to_vec()))
            .collect();
        let mut missing: BTreeMap<usize, BTreeSet<&[i64]>> = BTreeMap::new();
        for text in texts.iter().filter(|text| !self.encoded.contains(*text)) {
            missing.entry(text.1).or_default().insert(&text.0);
        }
        let mut new = HashMap::new();
        for (clip_skip, ids) in missing {
            let ids: Vec<&[i64]> = ids.into_iter().collect();
            // A GPU takes no longer for several. On the CPU the bytes would be others.
            let at_once = if self.device == Device::Cpu { 1 } else { ids.len() };
            for ids in ids.chunks(at_once) {
                let batch = Tensor::f_from_slice(&ids.concat())?.f_view([ids.len() as i64, -1])?;
                let jobs = AdaptedJobs {
                    sizes: &[ids.len() as i64],
                    deltas: &[adapters.text_encoder()],
                    apart: false,
                };
                let batch = stream.to_device(&batch)?;
                let split = BatchSplit::Adapted(jobs);
                let states = self.text_encoder.forward_split(&batch, clip_skip, split)?;
                for (index, ids) in (0..).zip(ids) {
                    new.insert(
                        (ids.to_vec(), clip_skip, adapted.to_vec()),
                        states.f_narrow(0, index, 1)?,
                    );
                }
            }
        }
        // A request may have more texts than the cache keeps.
        let states = texts.iter().map(|text| {
            let states = new.get(text).or_else(|| self.encoded.get(text));
            states
                .map(Tensor::shallow_clone)
                .ok_or_else(|| Error::internal("a text was not encoded"))
        });
        let states = states.collect::<Result<_>>()?;
        for (text, states) in new {
            self.encoded.put(text, states);
        }
        Ok(states)
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

    /// Returns the ids of one chunk. Each chunk begins and ends as a text does. Padding is before the end, also if the
    /// padding token differs.
    fn chunk_ids(&self, tokens: &WeightedTokens, chunk: usize) -> Vec<i64> {
        let size = self.tokens_per_chunk();
        let mut ids = vec![self.tokenizer.bos()];
        ids.extend(part(&tokens.ids, chunk, size));
        ids.resize(size + 1, self.tokenizer.pad());
        ids.push(self.tokenizer.eos());
        ids
    }

    /// Returns the hidden states of all chunks, one after the other, times the weights, scaled to the mean that they have
    /// without weights.
    fn weighted_states(&self, chunks: &[Tensor], tokens: &WeightedTokens, stream: &Stream) -> Result<Tensor> {
        let size = self.tokens_per_chunk();
        let mut weights: Vec<f32> = Vec::with_capacity(chunks.len() * self.tokenizer.max_length());
        for chunk in 0..chunks.len() {
            weights.push(1.0);
            weights.extend(part(&tokens.weights, chunk, size));
            weights.resize((chunk + 1) * (size + 2), 1.0);
        }
        let states = Tensor::f_cat(chunks, 1)?;
        let kind = states.kind();
        let weights = Tensor::f_from_slice(&weights)?.f_to_kind(kind)?.f_view([1, -1, 1])?;
        let weights = stream.to_device(&weights)?;
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

/// Returns the `chunk`-th part of `size` values; the last one may be shorter, and those behind it are empty.
fn part<T>(values: &[T], chunk: usize, size: usize) -> &[T] {
    values.chunks(size).nth(chunk).unwrap_or_default()
}

/// Token ids without begin, end and padding, and as many weights.
#[derive(Default)]
struct WeightedTokens {
    ids: Vec<i64>,
    weights: Vec<f32>,
    truncated: bool,
}
