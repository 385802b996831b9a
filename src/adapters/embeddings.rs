//! The words of all textual inversions that a request can use.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::textual_inversion::{TextualInversion, check_word};
use crate::models::clip::{AddedTokens, ClipTokenizer};
use diffusion_core::{Context, Error, Result};

/// A file, and what became of it.
#[derive(Clone, Debug)]
pub(super) struct InversionFile {
    /// The file.
    pub path: PathBuf,
    /// The loaded file; or its word and why it is refused.
    pub content: Result<Arc<TextualInversion>, (String, Error)>,
}

/// The textual inversions of a folder at one moment.
#[derive(Debug, Default)]
pub struct Embeddings {
    tokens: AddedTokens,
    by_first_id: BTreeMap<i64, Arc<TextualInversion>>,
    /// The path of the file that has each token.
    taken: BTreeMap<String, PathBuf>,
    /// The number of vectors of each word.
    words: BTreeMap<String, usize>,
    warnings: Vec<String>,
}

impl Embeddings {
    /// Adds files in their order. A word that an earlier file has, or that is in the vocabulary, is refused.
    pub(super) fn new(files: &[InversionFile], tokenizer: &ClipTokenizer) -> Self {
        let mut embeddings = Self {
            tokens: AddedTokens::new(tokenizer),
            ..Self::default()
        };
        let mut refused = Vec::new();
        for file in files {
            match &file.content {
                Ok(inversion) => {
                    if let Err(error) = embeddings.add(&file.path, inversion, tokenizer) {
                        let word = inversion.word();
                        // Nobody knows which of two files a text means.
                        refused.push((word, error, embeddings.words.contains_key(word)));
                    }
                }
                Err((word, error)) => refused.push((word, error.clone(), false)),
            }
        }
        for (word, error, is_ambiguous) in refused {
            embeddings.warnings.push(error.to_string());
            // A word of the vocabulary keeps its meaning, and so do the tokens of another file.
            let has_meaning = tokenizer.contains(word) || embeddings.taken.contains_key(word);
            if check_word(word).is_ok() && (is_ambiguous || !has_meaning) {
                embeddings.tokens.refuse(word, of_request(error));
            }
        }
        embeddings
    }

    fn add(&mut self, path: &Path, inversion: &Arc<TextualInversion>, tokenizer: &ClipTokenizer) -> Result<()> {
        let (word, vectors) = (inversion.word(), inversion.vectors());
        self.check(word, vectors, tokenizer)
            .context(|| path.display().to_string())?;
        for token in AddedTokens::tokens(word, vectors) {
            self.taken.insert(token, path.to_path_buf());
        }
        self.words.insert(word.to_owned(), vectors);
        self.tokens.add(word, inversion.first_id(), vectors);
        self.by_first_id.insert(inversion.first_id(), Arc::clone(inversion));
        Ok(())
    }

    /// Checks that a word is new, and each of its further tokens.
    ///
    /// The token after the last vector counts as well: diffusers takes it for a further vector of the word.
    fn check(&self, word: &str, vectors: usize, tokenizer: &ClipTokenizer) -> Result<()> {
        let continued = word.rsplit_once('_').and_then(|(first, number)| {
            let vectors = self.words.get(first)?;
            (number == vectors.to_string()).then(|| self.taken.get(first))?
        });
        let mut tokens = AddedTokens::tokens(word, vectors + 1);
        if let Some(other) = continued.or_else(|| tokens.find_map(|token| self.taken.get(&token))) {
            return Err(Error::invalid_argument(format!(
                "its word, or the word and a number, is a word of {} too; rename one",
                other.display()
            )));
        }
        if AddedTokens::tokens(word, vectors + 1).any(|token| tokenizer.contains(&token)) {
            return Err(Error::invalid_argument(
                "its word, or the word and a number, is in the vocabulary of the tokenizer; rename it",
            ));
        }
        Ok(())
    }

    /// Returns each word with its number of vectors.
    pub fn words(&self) -> impl Iterator<Item = (&str, usize)> {
        self.words.iter().map(|(word, vectors)| (word.as_str(), *vectors))
    }

    /// Returns why files are refused.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Does what [`AddedTokens::convert`] does.
    ///
    /// # Errors
    /// Those of [`AddedTokens::convert`].
    pub fn convert<'t>(&self, text: &'t str) -> Result<Cow<'t, str>> {
        self.tokens.convert(text)
    }

    /// Does what [`AddedTokens::encode_unpadded`] does.
    ///
    /// # Errors
    /// Those of [`AddedTokens::encode_unpadded`].
    pub fn encode_unpadded(&self, tokenizer: &ClipTokenizer, text: &str) -> Result<Vec<i64>> {
        self.tokens.encode_unpadded(tokenizer, text)
    }

    /// Returns the vector of an id beyond the vocabulary.
    pub fn vector(&self, id: i64) -> Option<&[f32]> {
        let (_, inversion) = self.by_first_id.range(..=id).next_back()?;
        inversion.vector(id)
    }
}

/// Makes the error of a request from that of a file: a client asked for the word.
fn of_request(error: Error) -> Error {
    match error {
        Error::NotFound(message) => Error::invalid_argument(message),
        error => error,
    }
}
