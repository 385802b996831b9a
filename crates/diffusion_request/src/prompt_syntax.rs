//! `prompt_syntax`: what brackets in a prompt mean.
//!
//! Source of the weighted syntax: diffusers `examples/community/lpw_stable_diffusion.py`
//! (`parse_prompt_attention`), which took it from the Stable Diffusion web UI.

use serde::Deserialize;

use diffusion_core::{Error, Result};

/// How a prompt is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptSyntax {
    /// Every character is text; what the text encoder does not take in one call is cut off, as by diffusers' pipelines.
    #[default]
    Plain,
    /// Brackets weigh the text in them, and a long text is encoded in several calls.
    Weighted,
}

impl PromptSyntax {
    /// Every syntax, by the name it has in `gen_args`.
    pub const ALL: [(&'static str, Self); 2] = [("plain", Self::Plain), ("weighted", Self::Weighted)];

    /// The name in `gen_args`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Weighted => "weighted",
        }
    }

    /// Checks that a prompt can be read.
    ///
    /// # Errors
    /// Those of [`parse_weighted`]; none for plain text.
    pub fn check(self, prompt: &str) -> Result<()> {
        match self {
            Self::Plain => Ok(()),
            Self::Weighted => parse_weighted(prompt).map(drop),
        }
    }
}

/// Weights are from minus this to this.
pub const MAX_WEIGHT: f64 = 10.0;

/// The most brackets that text can lie in. It bounds the time that a prompt takes; deeper text would have a weight
/// of 1.1 to the 128th.
pub const MAX_DEPTH: usize = 128;

/// What `(text)` multiplies the weight of its text by; `[text]` divides by it.
const BRACKET: f64 = 1.1;

/// Cuts a prompt of the weighted syntax into pieces of text, each with its weight. Never empty: a prompt without text
/// is one empty piece of weight 1.
///
/// - `(text)` multiplies the weight by 1.1, `[text]` divides it by 1.1, `(text:1.3)` multiplies it by 1.3, and brackets
///   can be nested, up to [`MAX_DEPTH`]. Round and square brackets do not see each other: they may overlap.
/// - `\(`, `\)`, `\[`, `\]` and `\\` are the characters themselves; any other backslash is dropped.
/// - A bracket that is never closed weighs all text after it; one that was never opened is text, and so is a
///   `:1.3)` outside of round brackets.
///
/// Neighbours of equal weight are one piece. Weights are products of float64 in the order in which brackets close, as
/// in Python. Digits are ASCII's alone. It takes time in proportion to the text.
///
/// # Errors
/// InvalidArgument for a weight that is no number (`:1.2.3)`) or beyond [`MAX_WEIGHT`], and for text in too many
/// brackets. The message does not hold any of the text.
pub fn parse_weighted(prompt: &str) -> Result<Vec<(String, f64)>> {
    let mut pieces: Vec<(&str, f64)> = Vec::new();
    // For each open bracket the piece that comes first in it.
    let (mut round, mut square) = (Vec::new(), Vec::new());
    let mut rest = prompt;
    while let Some((symbol, after)) = Symbol::first(rest) {
        let text = match symbol {
            Symbol::OpenRound => {
                round.push(pieces.len());
                None
            }
            Symbol::OpenSquare => {
                square.push(pieces.len());
                None
            }
            Symbol::CloseRound { text, weight } => match round.pop() {
                Some(first) => {
                    weigh(&mut pieces, first, weight.map_or(Ok(BRACKET), number)?);
                    None
                }
                None => Some(text),
            },
            Symbol::CloseSquare { text } => match square.pop() {
                Some(first) => {
                    weigh(&mut pieces, first, 1.0 / BRACKET);
                    None
                }
                None => Some(text),
            },
            Symbol::Text(text) => Some(text),
        };
        if let Some(text) = text {
            // All brackets that are open now will weigh this piece, at the latest at the end.
            if round.len() + square.len() > MAX_DEPTH {
                return Err(Error::invalid_argument(format!(
                    "`prompt_syntax` weighted: text can lie in at most {MAX_DEPTH} brackets"
                )));
            }
            pieces.push((text, 1.0));
        }
        rest = after;
    }
    for first in round {
        weigh(&mut pieces, first, BRACKET);
    }
    for first in square {
        weigh(&mut pieces, first, 1.0 / BRACKET);
    }
    let mut merged: Vec<(String, f64)> = Vec::new();
    for (text, weight) in pieces {
        if !(-MAX_WEIGHT..=MAX_WEIGHT).contains(&weight) {
            return Err(bad_weight());
        }
        match merged.last_mut() {
            Some((last, same)) if *same == weight => last.push_str(text),
            _ => merged.push((text.to_owned(), weight)),
        }
    }
    if merged.is_empty() {
        merged.push((String::new(), 1.0));
    }
    Ok(merged)
}

/// Multiplies the weight of the pieces from `first` on.
fn weigh(pieces: &mut [(&str, f64)], first: usize, factor: f64) {
    for (_, weight) in pieces.iter_mut().skip(first) {
        *weight *= factor;
    }
}

fn number(text: &str) -> Result<f64> {
    text.parse().map_err(|_| bad_weight())
}

fn bad_weight() -> Error {
    Error::invalid_argument(format!(
        "`prompt_syntax` weighted: a weight, multiplied by those of the brackets around it, must be a number from -{MAX_WEIGHT} to {MAX_WEIGHT}"
    ))
}

/// What a prompt is made of.
enum Symbol<'a> {
    OpenRound,
    OpenSquare,
    /// `)`, or `:1.3)` with `1.3` as its weight. `text` is all of it.
    CloseRound {
        text: &'a str,
        weight: Option<&'a str>,
    },
    CloseSquare {
        text: &'a str,
    },
    /// Text without syntax, or an escaped character without its backslash.
    Text(&'a str),
}

impl<'a> Symbol<'a> {
    /// The first symbol of a text and what comes after it.
    fn first(text: &'a str) -> Option<(Self, &'a str)> {
        // All that is looked at here is ASCII, so that no cut is within a character.
        let cut = |at: usize| text.split_at_checked(at).unwrap_or((text, ""));
        let bytes = text.as_bytes();
        let symbol = match bytes.first()? {
            b'\\' => {
                let escaped = matches!(bytes.get(1), Some(b'(' | b')' | b'[' | b']' | b'\\'));
                let (escape, after) = cut(if escaped { 2 } else { 1 });
                return Some((Self::Text(escape.split_at_checked(1)?.1), after));
            }
            b'(' => Self::OpenRound,
            b'[' => Self::OpenSquare,
            b')' => Self::CloseRound {
                text: cut(1).0,
                weight: None,
            },
            b']' => Self::CloseSquare { text: cut(1).0 },
            b':' => {
                let Some(weight) = weight(text) else {
                    return Some((Self::Text(cut(1).0), cut(1).1));
                };
                let (all, after) = cut(weight.len() + 2);
                let symbol = Self::CloseRound {
                    text: all,
                    weight: Some(weight),
                };
                return Some((symbol, after));
            }
            _ => {
                let end = text.find(['\\', '(', ')', '[', ']', ':']);
                let (plain, after) = cut(end.unwrap_or(text.len()));
                return Some((Self::Text(plain), after));
            }
        };
        Some((symbol, cut(1).1))
    }
}

/// The `1.3` of a text that begins with `:1.3)`: a sign or none, then digits and points.
fn weight(text: &str) -> Option<&str> {
    let after = text.strip_prefix(':')?;
    let unsigned = after.strip_prefix(['+', '-']).unwrap_or(after);
    let tail = unsigned.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    if tail.len() == unsigned.len() || !tail.starts_with(')') {
        return None;
    }
    after.get(..after.len() - tail.len())
}

#[cfg(test)]
mod tests;
