//! `prompt_syntax`: what brackets in a prompt mean.
//!
//! Source of the weighted syntax: diffusers `examples/community/lpw_stable_diffusion.py`
//! (`parse_prompt_attention`), which took it from the Stable Diffusion web UI.

use serde::Deserialize;

use diffusion_core::{Context, Error, Result};

/// How prompts are parsed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptSyntax {
    /// Every character is text. A text that is too long for one call of the text encoder is truncated, as in diffusers.
    #[default]
    Plain,
    /// Brackets weight the text in them. A long text is encoded in several calls.
    Weighted,
}

impl PromptSyntax {
    /// Every syntax, by the name it has in `gen_args`.
    pub const ALL: [(&'static str, Self); 2] = [("plain", Self::Plain), ("weighted", Self::Weighted)];

    /// Returns the name in `gen_args`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Weighted => "weighted",
        }
    }
}

/// Fragments of a weighted prompt: text without syntax, each with its weight. Never empty: a prompt without text is one
/// empty fragment of weight 1.
pub type Fragments = Vec<(String, f64)>;

/// The prompts of a request, parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompts {
    /// The prompt as the request gave it.
    pub prompt: String,
    /// The negative prompt as the request gave it.
    pub negative_prompt: String,
    /// The fragments of `prompt` and of `negative_prompt`; `None` for the plain syntax.
    pub weighted: Option<(Fragments, Fragments)>,
}

impl Prompts {
    /// Parses a prompt and a negative prompt.
    ///
    /// # Errors
    /// InvalidArgument that names the prompt, for a weight that is not a number or out of range, and for text in too many
    /// brackets; none for plain prompts.
    pub fn parse(syntax: PromptSyntax, prompt: String, negative_prompt: String) -> Result<Self> {
        let weighted = match syntax {
            PromptSyntax::Plain => None,
            PromptSyntax::Weighted => Some((
                parse_weighted(&prompt).context(|| "prompt")?,
                parse_weighted(&negative_prompt).context(|| "negative_prompt")?,
            )),
        };
        Ok(Self {
            prompt,
            negative_prompt,
            weighted,
        })
    }

    /// Returns the size of both prompts in bytes.
    pub fn size(&self) -> usize {
        self.prompt.len() + self.negative_prompt.len()
    }

    /// Returns the syntax that the prompts were parsed with.
    pub fn syntax(&self) -> PromptSyntax {
        match self.weighted {
            None => PromptSyntax::Plain,
            Some(_) => PromptSyntax::Weighted,
        }
    }
}

/// Weights are from minus this to this.
const MAX_WEIGHT: f64 = 10.0;

/// Most brackets around a text. Limits the time of a parse; deeper text would have a weight of 1.1 to the 128th.
const MAX_DEPTH: usize = 128;

/// Factor of `(text)`; `[text]` divides by it.
const BRACKET: f64 = 1.1;

/// Splits a prompt into fragments of text, each with its weight.
///
/// - `(text)` multiplies the weight by 1.1, `[text]` divides it by 1.1, `(text:1.3)` multiplies it by 1.3. Brackets
///   can be nested, up to [`MAX_DEPTH`]. Round and square brackets are independent of each other and may overlap.
/// - `\(`, `\)`, `\[`, `\]` and `\\` are the characters themselves; any other backslash is dropped.
/// - A bracket that is never closed weights all text after it. A closing bracket that was never opened is text, and so
///   is `:1.3)` outside of round brackets.
///
/// Neighbors of equal weight are one fragment. Weights are products of float64 in the order in which brackets close,
/// as in Python. Only ASCII digits count. The time is linear in the length of the text.
///
/// # Errors
/// InvalidArgument for a weight that is not a number (`:1.2.3)`) or beyond [`MAX_WEIGHT`], and for text in too many
/// brackets. The message does not hold any of the text.
fn parse_weighted(prompt: &str) -> Result<Fragments> {
    let mut fragments: Vec<(&str, f64)> = Vec::new();
    // For each open bracket the index of its first fragment.
    let (mut round, mut square) = (Vec::new(), Vec::new());
    let mut rest = prompt;
    while let Some((symbol, after)) = Symbol::first(rest) {
        let text = match symbol {
            Symbol::OpenRound => {
                round.push(fragments.len());
                None
            }
            Symbol::OpenSquare => {
                square.push(fragments.len());
                None
            }
            Symbol::CloseRound { text, weight } => match round.pop() {
                Some(first) => {
                    weigh(&mut fragments, first, weight.map_or(Ok(BRACKET), number)?);
                    None
                }
                None => Some(text),
            },
            Symbol::CloseSquare { text } => match square.pop() {
                Some(first) => {
                    weigh(&mut fragments, first, 1.0 / BRACKET);
                    None
                }
                None => Some(text),
            },
            Symbol::Text(text) => Some(text),
        };
        if let Some(text) = text {
            // Every bracket that is open now will weight this fragment, at the latest at the end.
            if round.len() + square.len() > MAX_DEPTH {
                return Err(Error::invalid_argument(format!(
                    "`prompt_syntax` weighted: text can be in at most {MAX_DEPTH} brackets"
                )));
            }
            fragments.push((text, 1.0));
        }
        rest = after;
    }
    for first in round {
        weigh(&mut fragments, first, BRACKET);
    }
    for first in square {
        weigh(&mut fragments, first, 1.0 / BRACKET);
    }
    let mut merged: Fragments = Vec::new();
    for (fragment, weight) in fragments {
        if !(-MAX_WEIGHT..=MAX_WEIGHT).contains(&weight) {
            return Err(bad_weight());
        }
        match merged.last_mut() {
            Some((last, same)) if *same == weight => last.push_str(fragment),
            _ => merged.push((fragment.to_owned(), weight)),
        }
    }
    if merged.is_empty() {
        merged.push((String::new(), 1.0));
    }
    Ok(merged)
}

/// Multiplies the weights from fragment `first` on.
fn weigh(fragments: &mut [(&str, f64)], first: usize, factor: f64) {
    for (_, weight) in fragments.iter_mut().skip(first) {
        *weight *= factor;
    }
}

fn number(text: &str) -> Result<f64> {
    text.parse().map_err(|_| bad_weight())
}

fn bad_weight() -> Error {
    Error::invalid_argument(format!(
        "`prompt_syntax` weighted: a weight, multiplied by the weights of the brackets around it, must be a number from -{MAX_WEIGHT} to {MAX_WEIGHT}"
    ))
}

/// The smallest unit of a prompt.
enum Symbol<'a> {
    OpenRound,
    OpenSquare,
    /// `)`, or `:1.3)` with the weight `1.3`. `text` is the whole symbol.
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
    /// Splits the first symbol off a text.
    fn first(text: &'a str) -> Option<(Self, &'a str)> {
        // Only ASCII is looked at: every split is between two characters.
        let split = |at: usize| text.split_at_checked(at).unwrap_or((text, ""));
        let bytes = text.as_bytes();
        let symbol = match bytes.first()? {
            b'\\' => {
                let escaped = matches!(bytes.get(1), Some(b'(' | b')' | b'[' | b']' | b'\\'));
                let (escape, after) = split(if escaped { 2 } else { 1 });
                return Some((Self::Text(escape.split_at_checked(1)?.1), after));
            }
            b'(' => Self::OpenRound,
            b'[' => Self::OpenSquare,
            b')' => Self::CloseRound {
                text: split(1).0,
                weight: None,
            },
            b']' => Self::CloseSquare { text: split(1).0 },
            b':' => {
                let Some(weight) = weight(text) else {
                    return Some((Self::Text(split(1).0), split(1).1));
                };
                let (all, after) = split(weight.len() + 2);
                let symbol = Self::CloseRound {
                    text: all,
                    weight: Some(weight),
                };
                return Some((symbol, after));
            }
            _ => {
                let end = text.find(['\\', '(', ')', '[', ']', ':']);
                let (plain, after) = split(end.unwrap_or(text.len()));
                return Some((Self::Text(plain), after));
            }
        };
        Some((symbol, split(1).1))
    }
}

/// Returns the `1.3` of a text that begins with `:1.3)`: an optional sign, then digits and points.
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
