//! Finding a component's weight files in a Hugging Face folder.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::file::TensorFile;
use diffusion_core::{Error, Result};

/// The `*.safetensors.index.json` of a sharded component.
#[derive(Deserialize)]
struct ShardIndex {
    /// Tensor name to file name.
    weight_map: HashMap<String, String>,
}

/// The weight files of one component (`unet/`, `vae/`, `text_encoder/`, ...).
pub struct Component {
    folder: PathBuf,
    files: Vec<TensorFile>,
    /// Tensor name, as the checkpoint spells it, to the file that holds it.
    places: HashMap<String, usize>,
}

impl Component {
    /// Opens the weights of `folder`.
    ///
    /// `stem` is `model` for transformers' components and `diffusion_pytorch_model` for diffusers'.
    /// The main files win over the `.fp16` variant, and a single file over a sharded one, as in
    /// diffusers' `from_pretrained` without `variant`.
    ///
    /// # Errors
    /// `NotFound` if there are no weights; `Unsupported` if there are only pickles (`.bin`), which
    /// are never executed; what [`TensorFile::open`] says of a bad file.
    pub fn open(folder: &Path, stem: &str) -> Result<Self> {
        for variant in ["", ".fp16"] {
            let single = folder.join(format!("{stem}{variant}.safetensors"));
            if single.exists() {
                return Self::from_files(folder, vec![TensorFile::open(&single)?]);
            }
            // diffusers writes `stem.safetensors.index.fp16.json`, transformers
            // `stem.safetensors.index.fp16.json` too, older ones `stem.fp16.safetensors.index.json`.
            for index in [
                format!("{stem}.safetensors.index{variant}.json"),
                format!("{stem}{variant}.safetensors.index.json"),
            ] {
                let index = folder.join(index);
                if index.exists() {
                    return Self::from_index(folder, &index);
                }
            }
        }
        Err(Self::nothing_found(folder, stem))
    }

    fn from_index(folder: &Path, path: &Path) -> Result<Self> {
        let index: ShardIndex = super::read_json(path)?;
        let names: BTreeSet<&String> = index.weight_map.values().collect();
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            // A shard lies beside its index; a name with a path in it is not one of ours to open.
            if Path::new(name).file_name().is_none_or(|file| file != name.as_str()) {
                return Err(Error::invalid_argument(format!(
                    "{}: names a shard outside of its folder",
                    path.display()
                )));
            }
            files.push(TensorFile::open(&folder.join(name))?);
        }
        let component = Self::from_files(folder, files)?;
        match index
            .weight_map
            .keys()
            .find(|name| !component.places.contains_key(*name))
        {
            Some(missing) => Err(Error::not_found(format!(
                "{}: its shards lack tensor {missing}",
                path.display()
            ))),
            None => Ok(component),
        }
    }

    fn from_files(folder: &Path, files: Vec<TensorFile>) -> Result<Self> {
        let mut places = HashMap::new();
        for (index, file) in files.iter().enumerate() {
            for name in file.names() {
                if places.insert(name.clone(), index).is_some() {
                    return Err(Error::invalid_argument(format!(
                        "{}: tensor {name} is in two shards",
                        file.path().display()
                    )));
                }
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            files,
            places,
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
                "{}: pickled weights can run code and are not read; convert them to safetensors once with diffusers: \
                 DiffusionPipeline.from_pretrained(DIR).save_pretrained(DIR, safe_serialization=True)",
                pickle.display()
            ));
        }
        Error::not_found(format!(
            "{}: no {stem}.safetensors, no .fp16 variant of it and no index of shards",
            folder.display()
        ))
    }

    /// The component's folder, for messages.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All files.
    pub fn files(&self) -> &[TensorFile] {
        &self.files
    }

    /// The file that holds `name`.
    pub fn file_of(&self, name: &str) -> Option<&TensorFile> {
        self.places.get(name).and_then(|&index| self.files.get(index))
    }

    /// Every tensor's name, as the checkpoint spells it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }
}
