//! The opened weight files of a component.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::file::TensorFile;
use super::weight_files::{Variant, WeightFiles};
use diffusion_core::{Error, Result};

/// The weight files of one component (`unet/`, `vae/`, `text_encoder/`, ...).
pub struct Component {
    folder: PathBuf,
    files: Vec<TensorFile>,
    /// The name of a tensor in the checkpoint to the file that holds it.
    tensor_to_file: HashMap<String, usize>,
}

impl Component {
    /// Opens the weight files in `folder`; [`WeightFiles::find`] explains `stem` and the choice of files.
    ///
    /// # Errors
    /// `NotFound` if there are no weights; `Unsupported` if there are only pickles (`.bin`), which are never executed;
    /// the errors of [`WeightFiles::find`] and [`TensorFile::open`].
    pub fn open(folder: &Path, stem: &str) -> Result<Self> {
        let Some(found) = WeightFiles::find(folder, stem, Variant::Main)? else {
            return Err(Self::nothing_found(folder, stem));
        };
        let files = found.files.iter().map(|path| TensorFile::open(path));
        let files = files.collect::<Result<Vec<_>>>()?;
        let mut tensor_to_file = HashMap::new();
        for (index, file) in files.iter().enumerate() {
            for name in file.names() {
                if tensor_to_file.insert(name.clone(), index).is_some() {
                    return Err(Error::invalid_argument(format!(
                        "{}: tensor {name} is in two shards",
                        file.path().display()
                    )));
                }
            }
        }
        if let Some(missing) = found.tensors.iter().find(|name| !tensor_to_file.contains_key(*name)) {
            return Err(Error::not_found(format!(
                "{}: tensor {missing} of the index is in no shard",
                folder.display()
            )));
        }
        Ok(Self {
            folder: folder.to_owned(),
            files,
            tensor_to_file,
        })
    }

    fn nothing_found(folder: &Path, stem: &str) -> Error {
        if !folder.is_dir() {
            return Error::not_found(format!("{}: no such folder", folder.display()));
        }
        let pickled_stem = if stem == "model" { "pytorch_model" } else { stem };
        let pickle = ["bin", "fp16.bin", "bin.index.json"]
            .iter()
            .map(|end| folder.join(format!("{pickled_stem}.{end}")))
            .find(|path| path.exists());
        if let Some(pickle) = pickle {
            return Error::unsupported(format!(
                "{}: pickled weights can run code and are not read; convert them to safetensors with diffusers: \
                 DiffusionPipeline.from_pretrained(DIR).save_pretrained(DIR, safe_serialization=True)",
                pickle.display()
            ));
        }
        Error::not_found(format!(
            "{}: no {stem}.safetensors, no fp16 variant and no index of shards",
            folder.display()
        ))
    }

    /// The folder of the component.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All files.
    pub fn files(&self) -> &[TensorFile] {
        &self.files
    }

    /// The file that holds `name`.
    pub fn file_of(&self, name: &str) -> Option<&TensorFile> {
        self.tensor_to_file.get(name).and_then(|&index| self.files.get(index))
    }

    /// The names of all tensors in the checkpoint.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensor_to_file.keys().map(String::as_str)
    }
}
