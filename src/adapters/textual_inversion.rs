//! A file of textual inversion: vectors that a word of a prompt stands for.
//!
//! Source: diffusers `loaders/textual_inversion.py` (`load_textual_inversion`).

use std::sync::atomic::{AtomicI64, Ordering};

use safetensors::Dtype;
use tch::Kind;

use crate::weights::TensorFile;
use diffusion_core::{Error, Result};

/// Most vectors of a word: as many as a text has tokens between begin and end.
const MAX_VECTORS: usize = 75;
/// Longest word in bytes.
const MAX_WORD_BYTES: usize = 128;
/// The tensor of stable-diffusion-webui, whose word is the name of the file.
const WEBUI_TENSOR: &str = "emb_params";
/// Tensors of files for Stable Diffusion XL.
const XL_TENSORS: [&str; 2] = ["clip_l", "clip_g"];

/// What the header of a file tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InversionHeader {
    /// The word; `None` if it is the name of the file.
    pub word: Option<String>,
    /// The number of vectors.
    pub vectors: usize,
    /// The size of a vector.
    pub width: usize,
    tensor: String,
}

impl InversionHeader {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported` for a file that is no textual inversion. The message does not have the file's name.
    pub fn of(file: &TensorFile) -> Result<Self> {
        let names = file.names();
        if names.iter().any(|name| XL_TENSORS.contains(&name.as_str())) {
            return Err(Error::unsupported(
                "the embedding is for Stable Diffusion XL (clip_l, clip_g)",
            ));
        }
        let [tensor] = names.as_slice() else {
            return Err(Error::invalid_argument(format!(
                "an embedding has 1 tensor, this file has {}",
                names.len()
            )));
        };
        let word = (tensor != WEBUI_TENSOR).then(|| tensor.clone());
        if let Some(word) = &word {
            check_word(word)?;
        }
        let info = file.info(tensor);
        let info = info.ok_or_else(|| Error::internal("a tensor is gone from its header"))?;
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64) {
            return Err(Error::invalid_argument(format!(
                "the tensor has dtype {:?}, expected float32, float16, bfloat16 or float64",
                info.dtype
            )));
        }
        let shape = info.shape.as_slice();
        let (vectors, width) = match *shape {
            [width] => (1, width),
            [vectors, width] => (vectors, width),
            _ => {
                return Err(Error::invalid_argument(format!(
                    "the tensor has {} dimensions, expected [vectors, size] or [size]",
                    shape.len()
                )));
            }
        };
        if !(1..=MAX_VECTORS).contains(&vectors) {
            return Err(Error::invalid_argument(format!(
                "the tensor has {vectors} vectors, expected 1 to {MAX_VECTORS}"
            )));
        }
        Ok(Self {
            word,
            vectors,
            width,
            tensor: tensor.clone(),
        })
    }

    /// Returns whether the file's tensors have names of textual inversion; a file of another kind may have them too.
    pub fn is_likely(file: &TensorFile) -> bool {
        let names = file.names();
        let named = |name: &String| name == WEBUI_TENSOR || XL_TENSORS.contains(&name.as_str());
        names.len() == 1 || names.iter().any(named)
    }
}

/// Returns the word that a file names itself, also if the file is refused for its tensor.
pub(super) fn own_word(file: &TensorFile) -> Option<String> {
    match file.names().as_slice() {
        [tensor] if tensor != WEBUI_TENSOR => Some(tensor.clone()),
        _ => None,
    }
}

/// Checks a word.
///
/// # Errors
/// `InvalidArgument` that does not have the word.
pub(super) fn check_word(word: &str) -> Result<()> {
    let visible = word.chars().any(|character| !character.is_whitespace());
    if visible && word.len() <= MAX_WORD_BYTES && !word.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Error::invalid_argument(format!(
        "the word must have 1 to {MAX_WORD_BYTES} bytes of text, without control characters"
    )))
}

/// The vectors of a word.
#[derive(Debug)]
pub struct TextualInversion {
    word: String,
    first_id: i64,
    vectors: usize,
    width: usize,
    /// The vectors one after the other.
    values: Vec<f32>,
}

impl TextualInversion {
    /// Loads a file for a text encoder of this size and dtype. `file_name` is without folder and `.safetensors`.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported` without the file's name; `Unavailable` if the file changes meanwhile.
    pub fn load(file: &TensorFile, file_name: &str, width: i64, kind: Kind) -> Result<Self> {
        let inversion = Self::read(file, file_name, width, kind)?;
        // A process may have written to the file meanwhile, or have shortened it, which reads as zeros.
        let mapped = file.mapped();
        if mapped.is_lost() || mapped.identity_now().as_ref() != Some(file.identity()) {
            return Err(Error::unavailable(
                "the file changed while it was read; send the request again",
            ));
        }
        Ok(inversion)
    }

    fn read(file: &TensorFile, file_name: &str, width: i64, kind: Kind) -> Result<Self> {
        let header = InversionHeader::of(file)?;
        if i64::try_from(header.width) != Ok(width) {
            return Err(Error::invalid_argument(format!(
                "a vector has {} numbers, the text encoder needs {width}",
                header.width
            )));
        }
        let tensor = file.tensor(&header.tensor)?;
        // In the text encoder's dtype: a large number is not finite in float16.
        let finite = tensor.f_to_kind(kind)?.f_isfinite()?.f_all()?.f_double_value(&[])?;
        if finite == 0.0 {
            return Err(Error::invalid_argument("the tensor has numbers that are not finite"));
        }
        let word = header.word.unwrap_or_else(|| file_name.to_owned());
        check_word(&word)?;
        Ok(Self {
            word,
            first_id: next_ids(header.vectors),
            vectors: header.vectors,
            width: header.width,
            values: Vec::try_from(tensor.f_to_kind(Kind::Float)?.f_reshape([-1])?)?,
        })
    }

    /// Returns the word.
    pub fn word(&self) -> &str {
        &self.word
    }

    /// Returns the number of vectors.
    pub fn vectors(&self) -> usize {
        self.vectors
    }

    /// Returns the id of the first vector; the next ones have the next ids. No other file of this process has one of them, so
    /// the ids of a text tell which vectors it has.
    pub(super) fn first_id(&self) -> i64 {
        self.first_id
    }

    /// Returns the vector of an id.
    pub(super) fn vector(&self, id: i64) -> Option<&[f32]> {
        let index = usize::try_from(id.checked_sub(self.first_id)?).ok()?;
        self.values.chunks(self.width.max(1)).nth(index)
    }
}

/// Returns the first of `count` ids that nothing else has. All are beyond any vocabulary.
fn next_ids(count: usize) -> i64 {
    static NEXT: AtomicI64 = AtomicI64::new(1 << 32);
    NEXT.fetch_add(i64::try_from(count).unwrap_or(i64::MAX), Ordering::Relaxed)
}
