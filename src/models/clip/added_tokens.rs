//! Tokens that are added to CLIP's vocabulary, and how a text is split at them.
//!
//! Sources: transformers `tokenization_utils.py` (`Trie`, `PreTrainedTokenizer.tokenize`), diffusers
//! `loaders/textual_inversion.py` (`maybe_convert_prompt`).

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use super::tokenizer::ClipTokenizer;
use diffusion_core::{Error, Result};

/// Longest text with all vectors of its words, in bytes.
const MAX_CONVERTED_BYTES: usize = 1 << 20;

/// Words that stand for tokens beyond the vocabulary. They are found in a text as it is: upper case counts, and a word
/// may be a part of a longer one.
#[derive(Debug, Default)]
pub struct AddedTokens {
    trie: Trie,
    words: HashMap<String, Result<AddedToken>>,
}

/// The id of a word, and how many ids follow each other from there.
#[derive(Clone, Copy, Debug)]
struct AddedToken {
    id: i64,
    count: usize,
}

impl AddedTokens {
    /// Makes a set without words. Texts are split at the tokenizer's special tokens too.
    pub fn new(tokenizer: &ClipTokenizer) -> Self {
        let mut trie = Trie::default();
        for token in tokenizer.special_tokens() {
            trie.add(token);
        }
        Self {
            trie,
            words: HashMap::new(),
        }
    }

    /// Returns the token of each id that `word` with `count` ids stands for: `word`, `word_1`, `word_2`, and so on.
    pub fn tokens(word: &str, count: usize) -> impl Iterator<Item = String> {
        (0..count).map(move |index| match index {
            0 => word.to_owned(),
            _ => format!("{word}_{index}"),
        })
    }

    /// Adds a word that stands for `count` ids from `id` on.
    pub fn add(&mut self, word: &str, id: i64, count: usize) {
        for (index, token) in (0..).zip(Self::tokens(word, count)) {
            let added = AddedToken {
                id: id + index,
                count: if index == 0 { count } else { 1 },
            };
            self.trie.add(&token);
            self.words.insert(token, Ok(added));
        }
    }

    /// Refuses texts with a word.
    pub fn refuse(&mut self, word: &str, error: Error) {
        self.trie.add(word);
        self.words.insert(word.to_owned(), Err(error));
    }

    /// Writes the tokens of all ids in place of each word of several ids: `word word_1 word_2` for `word`.
    ///
    /// The replacement is one of text, as in diffusers: it also changes a longer word that contains the word.
    ///
    /// # Errors
    /// `InvalidArgument` if the text becomes too long.
    pub fn convert<'t>(&self, text: &'t str) -> Result<Cow<'t, str>> {
        let mut converted = Cow::Borrowed(text);
        if self.words.is_empty() {
            return Ok(converted);
        }
        let mut seen = HashSet::new();
        for word in self.trie.split(text) {
            let count = match self.words.get(word) {
                Some(Ok(added)) => added.count,
                Some(Err(_)) | None => 1,
            };
            if count == 1 || !seen.insert(word) {
                continue;
            }
            let replacement = Self::tokens(word, count).collect::<Vec<_>>().join(" ");
            let added = converted.matches(word).count().saturating_mul(replacement.len());
            if added.saturating_add(converted.len()) > MAX_CONVERTED_BYTES {
                return Err(Error::invalid_argument(format!(
                    "the tokens of its embeddings are more than {MAX_CONVERTED_BYTES} bytes of text"
                )));
            }
            converted = Cow::Owned(converted.replace(word, &replacement));
        }
        Ok(converted)
    }

    /// Encodes the whole `text` without begin, end and padding.
    ///
    /// # Errors
    /// That of a word that is refused; those of [`ClipTokenizer::encode_unpadded`].
    pub fn encode_unpadded(&self, tokenizer: &ClipTokenizer, text: &str) -> Result<Vec<i64>> {
        if self.words.is_empty() {
            return tokenizer.encode_unpadded(text);
        }
        let mut ids = Vec::new();
        for part in self.trie.split(text) {
            match self.words.get(part) {
                Some(Ok(added)) => ids.push(added.id),
                Some(Err(error)) => return Err(error.clone()),
                None => ids.extend(tokenizer.encode_unpadded(part)?),
            }
        }
        Ok(ids)
    }
}

/// The words that texts are split at, by their first characters.
#[derive(Debug, Default)]
struct Trie(Node);

#[derive(Debug, Default)]
struct Node {
    next: BTreeMap<char, Node>,
    /// Whether a word ends here.
    ends: bool,
}

/// A word that may have begun at a character of the text.
struct Started<'a> {
    start: usize,
    /// Where the characters up to now lead.
    node: &'a Node,
    /// Whether the present character belongs to a word.
    goes_on: bool,
}

impl Trie {
    fn add(&mut self, word: &str) {
        if word.is_empty() {
            return;
        }
        let mut node = &mut self.0;
        for character in word.chars() {
            node = node.next.entry(character).or_default();
        }
        node.ends = true;
    }

    /// Splits a text before and after each word that is found; of several, the one that begins first and then the
    /// longest.
    fn split<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let characters: Vec<char> = text.chars().collect();
        let mut cuts = Vec::new();
        let mut started: Vec<Started<'_>> = Vec::new();
        let mut skip = 0;
        for (current, character) in characters.iter().enumerate() {
            if current < skip {
                continue;
            }
            let mut found = None;
            for state in &mut started {
                if state.node.ends {
                    found = Some(state.start);
                    break;
                }
                match state.node.next.get(character) {
                    Some(next) => state.node = next,
                    None => state.goes_on = false,
                }
            }
            if let Some(start) = found {
                let (start, end) = longest(&started, start, current, &characters);
                cuts.extend([start, end]);
                skip = end;
                started.clear();
            } else {
                started.retain(|state| state.goes_on);
            }
            if current >= skip
                && let Some(node) = self.0.next.get(character)
            {
                started.push(Started {
                    start: current,
                    node,
                    goes_on: true,
                });
            }
        }
        if let Some(last) = started.iter().find(|state| state.node.ends) {
            cuts.extend([last.start, characters.len()]);
        }
        cuts.push(characters.len());
        parts(text, &cuts)
    }
}

/// Returns begin and end of the word to cut at, where a word that began at `start` ends before character `current`: an
/// earlier or a longer one if the text has one.
///
/// A word that began earlier and does not go on still counts here, one character later. The source does the same.
fn longest(started: &[Started<'_>], start: usize, current: usize, characters: &[char]) -> (usize, usize) {
    let (mut begin, mut end) = (start, current);
    for state in started {
        if state.start > begin {
            break;
        }
        // Words that began earlier have taken the present character already.
        let mut ahead = if state.start < begin { current + 1 } else { current };
        let mut node = state.node;
        if node.ends {
            (begin, end) = (state.start, ahead);
        }
        while let Some(next) = characters.get(ahead).and_then(|character| node.next.get(character)) {
            node = next;
            ahead += 1;
            if node.ends {
                (begin, end) = (state.start, ahead);
            }
        }
    }
    (begin, end)
}

/// Cuts a text before the characters `cuts`. A cut before the last one is left out.
fn parts<'t>(text: &'t str, cuts: &[usize]) -> Vec<&'t str> {
    let mut offsets = text.char_indices().map(|(offset, _)| offset).chain([text.len()]);
    let (mut parts, mut rest) = (Vec::new(), text);
    // The next character of `offsets`, and the offset of `rest`.
    let (mut character, mut begin) = (0, 0);
    for &cut in cuts {
        let Some(offset) = cut.checked_sub(character).and_then(|skipped| offsets.nth(skipped)) else {
            continue;
        };
        character = cut + 1;
        let Some((part, after)) = rest.split_at_checked(offset - begin) else {
            continue;
        };
        if !part.is_empty() {
            parts.push(part);
        }
        (rest, begin) = (after, offset);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split<'t>(words: &[&str], text: &'t str) -> Vec<&'t str> {
        let mut trie = Trie::default();
        for word in words {
            trie.add(word);
        }
        trie.split(text)
    }

    /// Results of transformers' `Trie.split` for the same words and texts.
    #[test]
    fn texts_are_split_as_transformers_splits_them() {
        for (words, text, expected) in [
            (&["<cat>"][..], "a <cat> on", &["a ", "<cat>", " on"][..]),
            (&["<cat>"], "<cat>", &["<cat>"]),
            (&["<cat>"], "", &[]),
            (&["<cat>"], "<cat", &["<cat"]),
            (&["<cat>"], "a<cat><cat>b", &["a", "<cat>", "<cat>", "b"]),
            (
                &["id_1", "id_100"],
                "a id_100, id_10",
                &["a ", "id_100", ", ", "id_1", "0"],
            ),
            (&["blowing", "lower"], "a blower", &["a b", "lower"]),
            (&["[CLS]", "L"], "a [CLS] L", &["a ", "[CLS]", " ", "L"]),
            // The longer word fails one character before "y" is found, and goes on one character later.
            (&["xyw", "y"], "xyzw", &["xyzw"]),
            (&["xyw", "y"], "xyzv", &["x", "y", "zv"]),
            (&["中文"], "é中文é", &["é", "中文", "é"]),
            (&["wow!", "!"], "wow!! wow", &["wow!", "!", " wow"]),
            (&["aa"], "aaaaa", &["aa", "aa", "a"]),
            (&["x", "xyz"], "xyxyz", &["x", "y", "xyz"]),
        ] {
            assert_eq!(split(words, text), expected, "{words:?} {text:?}");
        }
    }

    #[test]
    fn words_of_several_ids_are_written_out() {
        let mut tokens = AddedTokens::default();
        tokens.add("neg", 100, 3);
        tokens.add("one", 200, 1);
        for (text, expected) in [
            ("a cat", "a cat"),
            ("one", "one"),
            ("neg, neg", "neg neg_1 neg_2, neg neg_1 neg_2"),
            ("neg_1", "neg_1"),
            // As diffusers does it, though nobody means it.
            ("neg neg_1", "neg neg_1 neg_2 neg neg_1 neg_2_1"),
        ] {
            assert_eq!(tokens.convert(text), Ok(expected.into()));
        }
        let long = "neg ".repeat(MAX_CONVERTED_BYTES / 8);
        assert!(matches!(tokens.convert(&long), Err(Error::InvalidArgument(_))));
    }
}
