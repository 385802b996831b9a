//! Which files hold the weights of a component.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::read_json;
use diffusion_core::{Error, Result};

/// Most shards of a component. Each takes a file descriptor and a map for as long as one of its tensors is used.
const MAX_SHARDS: usize = 64;

/// The variant of the weights that is preferred where a folder has several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// The main files, as in diffusers' `from_pretrained` without `variant`. The server reads these.
    Main,
    /// The `fp16` variant.
    Fp16,
}

/// The weight files of a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightFiles {
    /// The safetensors files.
    pub files: Vec<PathBuf>,
    /// The index, if the weights are sharded.
    pub index: Option<PathBuf>,
    /// The tensors that the index lists.
    pub tensors: Vec<String>,
}

/// The `*.safetensors.index.json` of a sharded component.
#[derive(Deserialize)]
struct ShardIndex {
    /// Tensor name to file name.
    weight_map: BTreeMap<String, String>,
}

impl WeightFiles {
    /// Finds the weight files in the folder of a component; `None` if it has no safetensors files.
    ///
    /// `stem` is `model` for components of transformers and `diffusion_pytorch_model` for components of diffusers. A
    /// single file is preferred to a sharded one, as in diffusers.
    ///
    /// # Errors
    /// `InvalidArgument` for an index that cannot be read, or that names too many files or a file outside of the folder.
    pub fn find(folder: &Path, stem: &str, prefer: Variant) -> Result<Option<Self>> {
        let variants = match prefer {
            Variant::Main => ["", ".fp16"],
            Variant::Fp16 => [".fp16", ""],
        };
        for variant in variants {
            let single = folder.join(format!("{stem}{variant}.safetensors"));
            if single.exists() {
                return Ok(Some(Self {
                    files: vec![single],
                    index: None,
                    tensors: Vec::new(),
                }));
            }
            // Both libraries write `stem.safetensors.index.fp16.json`; their older versions wrote the second name.
            for index in [
                format!("{stem}.safetensors.index{variant}.json"),
                format!("{stem}{variant}.safetensors.index.json"),
            ] {
                let index = folder.join(index);
                if index.exists() {
                    return Self::from_index(folder, index).map(Some);
                }
            }
        }
        Ok(None)
    }

    fn from_index(folder: &Path, path: PathBuf) -> Result<Self> {
        let index: ShardIndex = read_json(&path)?;
        let (tensors, names): (Vec<String>, BTreeSet<String>) = index.weight_map.into_iter().unzip();
        let is_plain = |name: &String| Path::new(name).file_name().is_some_and(|file| file == name.as_str());
        if !names.iter().all(is_plain) {
            return Err(Error::invalid_argument(format!(
                "{}: names a shard outside of its folder",
                path.display()
            )));
        }
        if names.len() > MAX_SHARDS {
            return Err(Error::invalid_argument(format!(
                "{}: names {} shards, the limit is {MAX_SHARDS}",
                path.display(),
                names.len()
            )));
        }
        Ok(Self {
            files: names.iter().map(|name| folder.join(name)).collect(),
            index: Some(path),
            tensors,
        })
    }
}
