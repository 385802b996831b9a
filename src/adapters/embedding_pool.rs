//! The textual inversions of a folder: all are loaded, and loaded again when their files change.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tch::Kind;

use super::embeddings::{Embeddings, InversionFile};
use super::textual_inversion::{TextualInversion, own_word};
use crate::models::clip::ClipTokenizer;
use crate::weights::{FileIdentity, TensorFile, check_inside};
use diffusion_core::{Context, Error, Result};

/// Files that are read. One has up to 300 kB of vectors in memory; most have 3 to 50 kB.
const MAX_FILES: usize = 1000;

/// The textual inversions in a folder, for one text encoder.
pub struct EmbeddingPool {
    folder: PathBuf,
    /// The folder that no link may lead out of.
    root: Option<PathBuf>,
    tokenizer: Arc<ClipTokenizer>,
    /// The size of a vector and the dtype of the text encoder.
    encoder: (i64, Kind),
    loaded: Mutex<Arc<Loaded>>,
    /// Held by the thread that loads files, so that each file is loaded once.
    loading: Mutex<()>,
    /// Warnings that the log has.
    reported: Mutex<Vec<String>>,
}

/// The files at one moment.
#[derive(Debug, Default)]
struct Loaded {
    files: HashMap<Listed, InversionFile>,
    embeddings: Arc<Embeddings>,
}

/// The name of a file without `.safetensors`, and what tells it from a file that replaces it; `None` if it cannot be
/// read, or if it changed while it was read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Listed {
    name: String,
    identity: Option<FileIdentity>,
}

impl EmbeddingPool {
    /// Makes the pool of a folder, which need not exist, for a text encoder with vectors of `width` numbers that computes
    /// in `kind`. With a `root`, no link may lead out of it.
    pub fn new(
        folder: PathBuf,
        root: Option<PathBuf>,
        tokenizer: Arc<ClipTokenizer>,
        (width, kind): (i64, Kind),
    ) -> Self {
        Self {
            folder,
            root,
            tokenizer,
            encoder: (width, kind),
            loaded: Mutex::default(),
            loading: Mutex::default(),
            reported: Mutex::default(),
        }
    }

    /// Returns the textual inversions if no file changed since they were loaded.
    pub fn loaded(&self) -> Option<Arc<Embeddings>> {
        self.unchanged(&self.list())
    }

    /// Returns the textual inversions, and loads those that are new or have changed. A file that cannot be loaded is a
    /// warning, and an error for a text with its word.
    pub fn get(&self) -> Arc<Embeddings> {
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let listed = self.list();
        if let Some(embeddings) = self.unchanged(&listed) {
            return embeddings;
        }
        let before = self.current();
        let mut files: Vec<(Listed, InversionFile)> = Vec::with_capacity(listed.len());
        for (index, one) in listed.into_iter().enumerate() {
            if index >= MAX_FILES {
                let file = not_read(self.path(&one.name), one.name.clone());
                files.push((one, file));
                continue;
            }
            let loaded = before.files.get(&one).filter(|_| one.identity.is_some());
            let file = loaded.cloned().unwrap_or_else(|| self.load(&one.name));
            let changed = matches!(file.content, Err((_, Error::Unavailable(_))));
            let identity = one.identity.filter(|_| !changed);
            files.push((Listed { identity, ..one }, file));
        }
        let in_order: Vec<InversionFile> = files.iter().map(|(_, file)| file.clone()).collect();
        let embeddings = Arc::new(Embeddings::new(&in_order, &self.tokenizer));
        let now = Loaded {
            files: files.into_iter().collect(),
            embeddings: Arc::clone(&embeddings),
        };
        *self.loaded.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(now);
        embeddings
    }

    /// Returns the words that prompts may have now.
    pub fn words(&self) -> Vec<String> {
        self.get().words().map(|(word, _)| word.to_owned()).collect()
    }

    /// Returns the reasons of refused files that were not returned before.
    pub fn new_warnings(&self) -> Vec<String> {
        let now = self.current().embeddings.warnings().to_vec();
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let new = now.iter().filter(|warning| !reported.contains(warning)).cloned();
        let new = new.collect();
        *reported = now;
        new
    }

    fn current(&self) -> Arc<Loaded> {
        Arc::clone(&self.loaded.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn unchanged(&self, listed: &[Listed]) -> Option<Arc<Embeddings>> {
        let loaded = self.current();
        let same = loaded.files.len() == listed.len() && listed.iter().all(|one| loaded.files.contains_key(one));
        same.then(|| Arc::clone(&loaded.embeddings))
    }

    /// Lists the files, sorted by their names.
    fn list(&self) -> Vec<Listed> {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return Vec::new();
        };
        let names = entries.flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let name = name.strip_suffix(".safetensors")?;
            (!name.starts_with('.')).then(|| name.to_owned())
        });
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        // The first one that is too much gets an error.
        names.truncate(MAX_FILES + 1);
        let listed = names.into_iter().map(|name| Listed {
            identity: fs::metadata(self.path(&name))
                .ok()
                .map(|metadata| FileIdentity::of(&metadata)),
            name,
        });
        listed.collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.safetensors"))
    }

    fn load(&self, name: &str) -> InversionFile {
        let path = self.path(name);
        let mut word = name.to_owned();
        let content = self.read(&path, name, &mut word).map(Arc::new);
        InversionFile {
            content: content.map_err(|error| (word, error)),
            path,
        }
    }

    /// Loads a file. `word` becomes its word if that is not the file's name, for a file that is refused too.
    fn read(&self, path: &Path, name: &str, word: &mut String) -> Result<TextualInversion> {
        if let Some(root) = &self.root {
            check_inside(path, root)?;
        }
        let file = TensorFile::open(path)?;
        if let Some(own) = own_word(&file) {
            *word = own;
        }
        let (width, kind) = self.encoder;
        TextualInversion::load(&file, name, width, kind).context(|| path.display().to_string())
    }
}

/// The answer to a file that is not read.
fn not_read(path: PathBuf, name: String) -> InversionFile {
    let error = Error::unsupported(format!(
        "{}: the folder has more than {MAX_FILES} embeddings; this one and those behind it are not read",
        path.display()
    ));
    InversionFile {
        path,
        content: Err((name, error)),
    }
}

#[cfg(test)]
mod tests;
