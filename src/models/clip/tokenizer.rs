//! CLIP's tokenizer: text to token ids.
//!
//! Source: transformers `models/clip/tokenization_clip.py` (`CLIPTokenizer` without `ftfy`, as diffusers runs it) for
//! folders with `vocab.json` and `merges.txt`. For other folders `tokenizer.json` defines everything.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{BertNormalizer, Lowercase, NFC, Sequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

use crate::weights::{MAX_JSON_BYTES, check_size, read_json, read_text};
use diffusion_core::{Error, Result};

/// How CLIP splits lower-cased text into words (`self.pat` in `tokenization_clip.py`).
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The tokenizer that `tokenizer/` of a model folder defines.
pub struct ClipTokenizer {
    inner: Tokenizer,
    bos: i64,
    eos: i64,
    pad: i64,
    max_length: usize,
    /// The tokens that are matched as a whole.
    special: BTreeSet<String>,
}

/// The token ids of one text.
#[derive(Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Begin, text, end and padding; `max_length` ids.
    pub ids: Vec<i64>,
    /// Whether the text was cut off.
    pub truncated: bool,
}

impl ClipTokenizer {
    /// Reads a `tokenizer/` folder. `max_positions` and `vocab_size` are those of the text encoder.
    ///
    /// # Errors
    /// `NotFound` or `InvalidArgument`, naming the file.
    pub fn open(folder: &Path, max_positions: usize, vocab_size: i64) -> Result<Self> {
        let config: Value = read_json(&folder.join("tokenizer_config.json"))?;
        let special = SpecialTokens::read(folder, &config)?;
        let (vocab, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
        let single = folder.join("tokenizer.json");
        let mut inner = if vocab.exists() && merges.exists() {
            from_vocab_and_merges(&vocab, &merges, &special.eos)?
        } else if single.exists() {
            read_text(&single, MAX_JSON_BYTES)?
                .parse::<Tokenizer>()
                .map_err(|error| Error::invalid_argument(format!("{}: {error}", single.display())))?
        } else {
            return Err(Error::not_found(format!(
                "{}: expected vocab.json and merges.txt, or tokenizer.json",
                folder.display()
            )));
        };
        let added = special
            .all
            .iter()
            // Matched after lower-casing, as in transformers.
            .map(|token| AddedToken::from(token.clone(), true).normalized(true))
            .collect::<Vec<_>>();
        let invalid = |what: String| Error::invalid_argument(format!("{}: {what}", folder.display()));
        inner
            .add_special_tokens(added)
            .map_err(|error| invalid(error.to_string()))?;
        let id = |token: &str| {
            inner
                .token_to_id(token)
                .map(i64::from)
                .filter(|&id| id < vocab_size)
                .ok_or_else(|| invalid("a special token is not in the vocabulary".to_owned()))
        };
        // Ids may have gaps, so the size of the vocabulary says nothing about them.
        let largest = inner.get_vocab(true).into_values().max().map_or(0, i64::from);
        if largest >= vocab_size {
            return Err(invalid(format!(
                "the vocabulary has the id {largest}, but vocab_size of the text encoder is {vocab_size}"
            )));
        }
        // Some folders have 1e30 for "no limit".
        let limit = config.get("model_max_length").and_then(Value::as_f64).unwrap_or(77.0);
        let max_length = if limit >= 3.0 {
            (limit as usize).min(max_positions)
        } else {
            0
        };
        if max_length < 3 {
            return Err(invalid("model_max_length must be at least 3".to_owned()));
        }
        Ok(Self {
            bos: id(&special.bos)?,
            eos: id(&special.eos)?,
            pad: id(&special.pad)?,
            max_length,
            inner,
            special: special.all,
        })
    }

    /// Encodes `text`, cut off or padded to `max_length`.
    ///
    /// # Errors
    /// `Internal` if the tokenizer fails; the error does not quote the text.
    pub fn encode(&self, text: &str) -> Result<Tokens> {
        Ok(self.padded(&self.encode_unpadded(text)?))
    }

    /// Adds begin and end to the ids of a text, and cuts them off or pads them to `max_length`.
    pub fn padded(&self, text: &[i64]) -> Tokens {
        let max_words = self.max_length - 2;
        let mut ids = Vec::with_capacity(self.max_length);
        ids.push(self.bos);
        ids.extend(text.iter().take(max_words));
        ids.push(self.eos);
        ids.resize(self.max_length, self.pad);
        Tokens {
            ids,
            truncated: text.len() > max_words,
        }
    }

    /// Encodes the whole `text` without begin, end and padding.
    ///
    /// # Errors
    /// `Internal` if the tokenizer fails; the error does not quote the text.
    pub fn encode_unpadded(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|_| Error::internal("the tokenizer failed on a text"))?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }

    /// Returns whether the vocabulary has a token, special ones included.
    pub fn contains(&self, token: &str) -> bool {
        self.inner.token_to_id(token).is_some()
    }

    /// Returns the tokens that are matched as a whole.
    pub fn special_tokens(&self) -> impl Iterator<Item = &str> {
        self.special.iter().map(String::as_str)
    }

    /// Returns the largest number of ids of one text encoder call, including begin and end; at least 3.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Returns the id that begins a text.
    pub fn bos(&self) -> i64 {
        self.bos
    }

    /// Returns the id that ends a text.
    pub fn eos(&self) -> i64 {
        self.eos
    }

    /// Returns the id that pads a short text.
    pub fn pad(&self) -> i64 {
        self.pad
    }
}

fn from_vocab_and_merges(vocab: &Path, merges: &Path, unknown: &str) -> Result<Tokenizer> {
    let invalid = |error: &dyn std::fmt::Display| {
        Error::invalid_argument(format!("{}, {}: {error}", vocab.display(), merges.display()))
    };
    let path = |path: &Path| {
        path.to_str()
            .map(str::to_owned)
            .ok_or_else(|| invalid(&"the path is not UTF-8"))
    };
    for file in [vocab, merges] {
        check_size(file, MAX_JSON_BYTES)?;
    }
    let model = BPE::from_file(&path(vocab)?, &path(merges)?)
        .end_of_word_suffix("</w>".to_owned())
        .unk_token(unknown.to_owned())
        .build()
        .map_err(|error| invalid(&error))?;
    let mut tokenizer = Tokenizer::new(model);
    if tokenizer.token_to_id(unknown).is_none() {
        return Err(invalid(&"the vocabulary lacks the token for unknown characters"));
    }
    let normalizer = Sequence::new(vec![
        // Removes control characters, makes white space spaces, separates Chinese characters.
        BertNormalizer::new(true, true, Some(false), false).into(),
        NFC.into(),
        Lowercase.into(),
    ]);
    tokenizer
        .with_normalizer(Some(normalizer))
        .map_err(|error| invalid(&error))?;
    let words = Split::new(
        SplitPattern::Regex(WORDS.to_owned()),
        SplitDelimiterBehavior::Removed,
        true,
    )
    .map_err(|error| invalid(&error))?;
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![
        words.into(),
        ByteLevel::new(false, false, false).into(),
    ])));
    Ok(tokenizer)
}

/// The special tokens of a folder.
struct SpecialTokens {
    bos: String,
    eos: String,
    pad: String,
    /// Every token that is matched as a whole. In Stable Diffusion 2 this includes `!`, the padding token: an exclamation
    /// mark gets its id, 0.
    all: BTreeSet<String>,
}

impl SpecialTokens {
    /// Reads `tokenizer_config.json` if it lists the added tokens (transformers since 4.34), else
    /// `special_tokens_map.json` first (`PreTrainedTokenizerBase._from_pretrained`).
    fn read(folder: &Path, config: &Value) -> Result<Self> {
        let listed = config.get("added_tokens_decoder").and_then(Value::as_object);
        let map_path = folder.join("special_tokens_map.json");
        let map: Value = if listed.is_none() && map_path.exists() {
            read_json(&map_path)?
        } else {
            Value::Null
        };
        let find = |key: &str| content(map.get(key)).or_else(|| content(config.get(key)));
        let eos = find("eos_token").unwrap_or_else(|| "<|endoftext|>".to_owned());
        let bos = find("bos_token").unwrap_or_else(|| "<|startoftext|>".to_owned());
        let pad = find("pad_token").unwrap_or_else(|| eos.clone());
        let mut all = BTreeSet::from([bos.clone(), eos.clone(), pad.clone()]);
        all.extend(find("unk_token"));
        if let Some(listed) = listed {
            all.extend(listed.values().filter_map(|token| content(Some(token))));
        }
        all.remove("");
        Ok(Self { bos, eos, pad, all })
    }
}

/// Returns the text of a token, which is `"!"` or `{"content": "!", ...}`.
fn content(token: Option<&Value>) -> Option<String> {
    let token = token?;
    let text = token
        .as_str()
        .or_else(|| token.get("content").and_then(Value::as_str))?;
    Some(text.to_owned())
}
