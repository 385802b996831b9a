//! The tokenizer and the configurations from a folder of the user, which a single file does not contain.

use std::fs;
use std::path::{Path, PathBuf};

use diffusion_core::{Error, Result};
use serde_json::{Value, json};
use triton_diffusion::pipelines::loading::COMPONENTS;
use triton_diffusion::weights::read_json;

use super::config::Configs;
use crate::files;

/// Finds the folder of the tokenizer's files.
///
/// # Errors
/// No option is given, or the folder has no tokenizer.
pub fn tokenizer(tokenizer: Option<&Path>, config: Option<&Path>) -> Result<PathBuf> {
    let Some(given) = tokenizer.or(config) else {
        return Err(Error::invalid_argument(
            "a single file holds no tokenizer: give --tokenizer with a folder that has vocab.json and merges.txt, such as \
             tokenizer/ of a diffusers folder of the same Stable Diffusion, or --config with such a diffusers folder",
        ));
    };
    let inside = given.join("tokenizer");
    for folder in [inside, given.to_owned()] {
        let has = |name: &str| folder.join(name).is_file();
        if has("tokenizer_config.json") && (has("tokenizer.json") || (has("vocab.json") && has("merges.txt"))) {
            return Ok(folder);
        }
    }
    Err(Error::not_found(format!(
        "{}: no tokenizer_config.json, vocab.json and merges.txt, and none in tokenizer/",
        given.display()
    )))
}

/// Copies the tokenizer's files.
///
/// # Errors
/// Errors of the file system.
pub fn copy_tokenizer(from: &Path, to: &Path) -> Result<()> {
    files::make_folder(to)?;
    let names = COMPONENTS.iter().filter(|spec| spec.name == "tokenizer");
    for name in names.flat_map(|spec| spec.files) {
        let path = from.join(name);
        if path.is_file() {
            fs::copy(&path, to.join(name)).map_err(|error| files::failed(&path, &error))?;
        }
    }
    Ok(())
}

/// Reads the configurations of a diffusers folder, and removes the components that a single file does not contain.
///
/// # Errors
/// A file is missing or not JSON.
pub fn configs(folder: &Path) -> Result<Configs> {
    let mut configs = Configs::new();
    for path in [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
    ] {
        configs.insert(path, read_json::<Value>(&folder.join(path))?);
    }
    if let Some(index) = configs.get_mut("model_index.json").and_then(Value::as_object_mut) {
        for name in ["feature_extractor", "image_encoder", "safety_checker"] {
            if index.contains_key(name) {
                index.insert(name.to_owned(), json!([null, null]));
            }
        }
        index.insert("requires_safety_checker".to_owned(), false.into());
    }
    Ok(configs)
}
