//! The model's folder before it is packed.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use diffusion_core::{Error, Result};
use indicatif::ProgressBar;
use serde_json::{Map, Value};
use triton_diffusion::weights::{Variant, read_json};

use crate::checkpoint::packed_files;
use crate::dtype::{Float, target};
use crate::model_config::{Kind, config_pbtxt, cpu_pbtxt};
use crate::tensors::{self, Entry, Source};
use crate::{files, progress};

/// The path of the checkpoint in the model's folder: version 1, and the backend's default.
pub const CHECKPOINT: &str = "1/checkpoint";

/// The files in a LoRA's folder that the server reads.
const LORA_FILES: [&str; 3] = [
    "adapter_model.safetensors",
    "adapter_config.json",
    "pytorch_lora_weights.safetensors",
];

/// Writes the configuration files.
///
/// # Errors
/// Errors of the file system.
pub fn configuration(
    model: &Path,
    pipeline: &str,
    (kind, decoupled): (Kind, bool),
    parameters: &Map<String, Value>,
) -> Result<()> {
    files::make_folder(&model.join("configs"))?;
    let config = config_pbtxt(pipeline, kind, decoupled, parameters);
    files::write(&model.join("config.pbtxt"), config.as_bytes())?;
    let cpu = cpu_pbtxt(pipeline, decoupled, parameters);
    files::write(&model.join("configs/cpu.pbtxt"), cpu.as_bytes())
}

/// Stages a LoRA, a file or a folder of peft or diffusers, as links or copies. Returns its path in the version folder.
///
/// # Errors
/// `NotFound` if there is no LoRA; errors of the file system.
pub fn lora(path: &Path, model: &Path, copies: bool) -> Result<&'static str> {
    let version = model.join("1");
    let path = fs::canonicalize(path).map_err(|error| files::failed(path, &error))?;
    let staged = if path.is_dir() { "lora" } else { "lora.safetensors" };
    let target = version.join(staged);
    let pairs: Vec<(PathBuf, PathBuf)> = if path.is_dir() {
        let names = LORA_FILES.iter();
        names.map(|name| (path.join(name), target.join(name))).collect()
    } else {
        vec![(path, target)]
    };
    for (from, to) in pairs.into_iter().filter(|(from, _)| from.is_file()) {
        files::make_folder(&files::folder_of(&to))?;
        if copies {
            fs::copy(&from, &to).map_err(|error| files::failed(&from, &error))?;
        } else {
            symlink(&from, &to).map_err(|error| files::failed(&to, &error))?;
        }
    }
    Ok(staged)
}

/// Stages the files that serving needs below `model`: links or copies, and new files for converted weights.
///
/// # Errors
/// Errors of the folder and of files; a value beyond the range of the dtype.
pub fn checkpoint(folder: &Path, model: &Path, prefer: Variant, dtype: Option<Float>, copies: bool) -> Result<()> {
    // The links are in another folder, so a relative path would not work.
    let folder = fs::canonicalize(folder).map_err(|error| files::failed(folder, &error))?;
    let served = packed_files(&folder, prefer)?;
    let mut total = 0;
    for path in &served {
        total += files::length(&folder.join(path))?;
    }
    let bar = progress::bytes(total, "checkpoint");
    let mut changed = BTreeSet::new();
    for path in &served {
        let (from, to) = (folder.join(path), model.join(CHECKPOINT).join(path));
        files::make_folder(&files::folder_of(&to))?;
        if is_weights(path) && convert(&from, &to, dtype, &bar)? {
            changed.extend(path.parent().map(Path::to_owned));
        } else if copies {
            let bytes = fs::copy(&from, &to).map_err(|error| files::failed(&from, &error))?;
            bar.inc(bytes);
        } else {
            symlink(&from, &to).map_err(|error| files::failed(&to, &error))?;
        }
    }
    bar.finish_and_clear();
    let lists = served.iter().filter(|path| is_shard_index(path));
    for path in lists.filter(|path| path.parent().is_some_and(|own| changed.contains(own))) {
        correct_total_size(&model.join(CHECKPOINT).join(path))?;
    }
    Ok(())
}

fn is_weights(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "safetensors")
}

fn is_shard_index(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.ends_with(b".json") && name.windows(17).any(|part| part == b"safetensors.index")
}

/// Writes a new file if the dtype of a tensor changes; returns whether it did.
fn convert(from: &Path, to: &Path, dtype: Option<Float>, bar: &ProgressBar) -> Result<bool> {
    if dtype.is_none() {
        return Ok(false);
    }
    let source = Source::open(from)?;
    let names = source.names();
    let infos = names.iter().filter_map(|name| Some((name, source.info(name)?)));
    let entries: Vec<Entry> = infos
        .map(|(name, info)| Entry::whole(name, name, info, target(info.dtype, dtype)))
        .collect();
    let differs = |entry: &Entry| source.info(&entry.from).is_some_and(|i| i.dtype != entry.dtype);
    if !entries.iter().any(differs) {
        return Ok(false);
    }
    tensors::write(to, &source, entries, &source.notes(), |bytes| bar.inc(bytes))?;
    Ok(true)
}

/// Updates `metadata.total_size` in the index of converted shards: the bytes of their tensors.
fn correct_total_size(path: &Path) -> Result<()> {
    let mut list: Value = read_json(path)?;
    let mut shards: BTreeSet<PathBuf> = BTreeSet::new();
    let map = list.get("weight_map").and_then(Value::as_object);
    for name in map.into_iter().flat_map(Map::values).filter_map(Value::as_str) {
        shards.insert(files::folder_of(path).join(name));
    }
    let mut bytes = 0;
    for shard in &shards {
        let source = Source::open(shard)?;
        for name in source.names() {
            bytes += source
                .info(&name)
                .map_or(0, |info| info.data_offsets.1 - info.data_offsets.0);
        }
    }
    let Some(total) = list.pointer_mut("/metadata/total_size") else {
        return Ok(());
    };
    *total = bytes.into();
    let text =
        serde_json::to_string_pretty(&list).map_err(|error| Error::internal(format!("{}: {error}", path.display())))?;
    // Replaces the link or the copy.
    files::write(path, text.as_bytes())
}
