//! The report about a file of textual inversion.

use std::path::{Path, PathBuf};

use diffusion_core::Result;
use indicatif::HumanBytes;
use serde::Serialize;
use triton_diffusion::adapters::InversionHeader;
use triton_diffusion::weights::TensorFile;

/// What a file of textual inversion adds to prompts.
#[derive(Debug, Default, Serialize)]
pub struct EmbeddingReport {
    /// The file.
    pub file: PathBuf,
    /// The bytes of its tensors.
    pub bytes: usize,
    /// The word that prompts have.
    pub word: Option<String>,
    /// The vectors that the word stands for.
    pub vectors: Option<usize>,
    /// The numbers of a vector: `hidden_size` of the text encoder.
    pub size: Option<usize>,
    /// Why the server refuses the file.
    pub problems: Vec<String>,
}

impl EmbeddingReport {
    /// Reads the header of a file.
    pub fn of(path: &Path, file: &TensorFile) -> Self {
        let tensors = file.names();
        let bytes = tensors
            .iter()
            .filter_map(|name| Some(file.range(file.info(name)?).len()));
        let report = Self {
            file: path.to_owned(),
            bytes: bytes.sum(),
            ..Self::default()
        };
        match InversionHeader::of(file) {
            Ok(header) => Self {
                word: header
                    .word
                    .or_else(|| Some(path.file_stem()?.to_string_lossy().into_owned())),
                vectors: Some(header.vectors),
                size: Some(header.width),
                ..report
            },
            Err(error) => Self {
                problems: vec![error.to_string()],
                ..report
            },
        }
    }

    /// Formats the report.
    pub fn text(&self) -> String {
        let size = HumanBytes(self.bytes as u64);
        let mut lines = vec![self.file.display().to_string(), format!("  textual inversion, {size}")];
        if let (Some(word), Some(vectors), Some(width)) = (&self.word, self.vectors, self.size) {
            lines.push(format!("  word          {word}"));
            lines.push(format!(
                "  vectors       {vectors} of {width} numbers, for {}",
                family(width)
            ));
        }
        lines.extend(self.problems.iter().map(|problem| format!("problem: {problem}")));
        lines.join("\n")
    }
}

/// Returns which published text encoders have a hidden size.
fn family(width: usize) -> &'static str {
    match width {
        768 => "Stable Diffusion 1",
        1024 => "Stable Diffusion 2",
        _ => "a text encoder of this hidden_size",
    }
}

/// Reads a file; returns nothing for one that cannot be of textual inversion, by the names of its tensors.
///
/// # Errors
/// Those of [`TensorFile::open`].
pub fn read(path: &Path) -> Result<Option<EmbeddingReport>> {
    let file = TensorFile::open(path)?;
    Ok(InversionHeader::is_likely(&file).then(|| EmbeddingReport::of(path, &file)))
}
