//! Encoding of prompts as the text embeddings that the UNet attends to.
//!
//! Sources: diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion.py` (`encode_prompt`) for plain prompts,
//! `examples/community/lpw_stable_diffusion.py` (`get_weighted_text_embeddings`) for weighted ones.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use tch::{Device, Kind, Tensor};

use crate::adapters::{Embeddings, JobAdapters};
use crate::models::clip::{AddedVectors, ClipTextModel, ClipTokenizer};
use crate::models::layers::{AdaptedJobs, BatchSplit};
use crate::torch::Stream;
use crate::weights::SharedModel;
use diffusion_core::{Context, Error, Result};
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
    /// prompt only if plain and to both prompts if weighted. `adapters` change the text encoder and add words.
    ///
    /// # Errors
    /// That of a word whose file is refused, and those of [`Embeddings::convert`], with the name of the prompt; Internal
    /// if the tokenizer fails.
    pub fn encode(
        &mut self,
        prompts: &Prompts,
        guided: bool,
        clip_skip: usize,
        adapters: &JobAdapters,
        stream: &Stream,
    ) -> Result<PromptEmbeds> {
        let call = EncoderCall { adapters, stream };
        let prompts = converted(prompts, guided, adapters.embeddings())?;
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
        let tokens = |text: &str| Ok(self.tokenizer.padded(&self.unpadded_ids(text, call)?));
        let prompt = tokens(prompt).context(|| PROMPT)?;
        let negative = negative.map(tokens).transpose().context(|| NEGATIVE_PROMPT)?;
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
        let tokens = |text| self.weighted_tokens(text, call);
        let prompt = tokens(prompt).context(|| PROMPT)?;
        let negative = negative.map(|text| tokens(text)).transpose();
        let negative = negative.context(|| NEGATIVE_PROMPT)?;
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
                let (in_vocabulary, added) = self.added_vectors(&ids.concat(), call)?;
                let batch = Tensor::f_from_slice(&in_vocabulary)?.f_view([ids.len() as i64, -1])?;
                let jobs = AdaptedJobs {
                    sizes: &[ids.len() as i64],
                    deltas: &[adapters.text_encoder()],
                    apart: false,
                };
                let batch = stream.to_device(&batch)?;
                let split = BatchSplit::Adapted(jobs);
                let states = self
                    .text_encoder
                    .forward_split(&batch, added.as_ref(), clip_skip, split)?;
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

    /// Returns the ids of a text without begin, end and padding. Words of textual inversions have ids beyond the
    /// vocabulary.
    fn unpadded_ids(&self, text: &str, call: EncoderCall<'_>) -> Result<Vec<i64>> {
        call.adapters.embeddings().encode_unpadded(&self.tokenizer, text)
    }

    /// Returns ids of the vocabulary, and the vectors of those that are beyond it.
    fn added_vectors(&self, ids: &[i64], call: EncoderCall<'_>) -> Result<(Vec<i64>, Option<AddedVectors>)> {
        let (mut positions, mut vectors) = (Vec::new(), Vec::new());
        let mut in_vocabulary = Vec::with_capacity(ids.len());
        for (position, &id) in (0i64..).zip(ids) {
            let vector = call.adapters.embeddings().vector(id);
            if let Some(vector) = vector {
                positions.push(position);
                vectors.extend_from_slice(vector);
            }
            in_vocabulary.push(if vector.is_some() { 0 } else { id });
        }
        if positions.is_empty() {
            return Ok((in_vocabulary, None));
        }
        let vectors = Tensor::f_from_slice(&vectors)?
            .f_view([positions.len() as i64, -1])?
            .f_to_kind(self.text_encoder.kind())?;
        let added = AddedVectors {
            positions: call.stream.to_device(&Tensor::f_from_slice(&positions)?)?,
            vectors: call.stream.to_device(&vectors)?,
        };
        Ok((in_vocabulary, Some(added)))
    }

    /// Tokenizes a prompt; each token has the weight of its fragment. Fragments are tokenized one by one: a word that
    /// changes its weight in the middle is two words.
    fn weighted_tokens(&self, fragments: &[(String, f64)], call: EncoderCall<'_>) -> Result<WeightedTokens> {
        let limit = self.tokens_per_chunk() * MAX_CHUNKS;
        let mut tokens = WeightedTokens::default();
        for (text, weight) in fragments {
            let ids = self.unpadded_ids(text, call)?;
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

/// Writes the words of textual inversions of several vectors out, before a weighted prompt is parsed, as the sources
/// do.
fn converted<'a>(prompts: &'a Prompts, guided: bool, embeddings: &Embeddings) -> Result<Cow<'a, Prompts>> {
    let prompt = embeddings.convert(&prompts.prompt).context(|| PROMPT)?;
    let negative = prompts.negative_prompt.as_str();
    let negative = if guided {
        embeddings.convert(negative).context(|| NEGATIVE_PROMPT)?
    } else {
        Cow::Borrowed(negative)
    };
    if matches!((&prompt, &negative), (Cow::Borrowed(_), Cow::Borrowed(_))) {
        return Ok(Cow::Borrowed(prompts));
    }
    Prompts::parse(prompts.syntax(), prompt.into_owned(), negative.into_owned()).map(Cow::Owned)
}

/// Returns the `chunk`-th part of `size` values; the last one may be shorter, and those behind it are empty.
fn part<T>(values: &[T], chunk: usize, size: usize) -> &[T] {
    values.chunks(size).nth(chunk).unwrap_or_default()
}

/// The names of the prompts in errors.
const PROMPT: &str = "prompt";
const NEGATIVE_PROMPT: &str = "negative_prompt";

/// Token ids without begin, end and padding, and as many weights.
#[derive(Default)]
struct WeightedTokens {
    ids: Vec<i64>,
    weights: Vec<f32>,
    truncated: bool,
}
