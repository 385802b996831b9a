//! `convert`: converts a single file in the layout of the original code to a diffusers folder, and a LoRA of any format to
//! that of diffusers with peft.

mod clip;
mod config;
mod key_map;
mod lora;
mod settings;
mod types;
mod unet;
mod vae;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use diffusion_core::config::ModelParameters;
use diffusion_core::{Error, Result};
use serde_json::Value;

use crate::dtype::{Float, target};
use crate::tensors::{self, Source};
use crate::verify::verify;
use crate::{files, output, progress};

use config::{InferOptions, Prediction};
use key_map::KeyMap;
use types::Component;

/// Converts a single-file checkpoint of Stable Diffusion 1 or 2 (the layout of A1111 and ComfyUI) to a diffusers folder, or
/// a LoRA of any format to that of diffusers with peft
#[derive(Args)]
pub struct Arguments {
    /// The checkpoint, a safetensors file; or a LoRA, a safetensors file or a folder of peft or diffusers
    file: PathBuf,
    /// The diffusers folder to make; for a LoRA, the safetensors file
    #[arg(long)]
    out: PathBuf,
    /// For a LoRA: the diffusers folder of the model that it is for. Not needed if the layers are those of Stable
    /// Diffusion 1 or 2 as published
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["tokenizer", "config", "prediction_type", "image_size", "dtype"])]
    base: Option<PathBuf>,
    /// A folder with vocab.json and merges.txt, or a diffusers folder with tokenizer/: the file has no tokenizer
    #[arg(long, value_name = "FOLDER")]
    tokenizer: Option<PathBuf>,
    /// A diffusers folder whose configurations and tokenizer are used, instead of configurations inferred from the
    /// shapes
    #[arg(long, value_name = "FOLDER")]
    config: Option<PathBuf>,
    /// What the UNet predicts; required for Stable Diffusion 2, since it cannot be inferred
    #[arg(long, value_enum, conflicts_with = "config")]
    prediction_type: Option<Prediction>,
    /// Pixels along a side of the images that the model was trained on [default: 512; 768 with v_prediction]
    #[arg(long, value_name = "PIXELS", conflicts_with = "config", value_parser = clap::value_parser!(u32).range(64..=4096))]
    image_size: Option<u32>,
    /// Keep the weights in this dtype [default: that of the file]
    #[arg(long)]
    dtype: Option<Float>,
}

impl Arguments {
    /// Checks that no option is given that only the other kind of input has.
    fn check(&self, is_lora: bool) -> Result<()> {
        let given = [
            (self.base.is_some() && !is_lora, "--base", "a checkpoint"),
            (self.tokenizer.is_some() && is_lora, "--tokenizer", "a LoRA"),
            (self.config.is_some() && is_lora, "--config", "a LoRA"),
            (self.prediction_type.is_some() && is_lora, "--prediction-type", "a LoRA"),
            (self.image_size.is_some() && is_lora, "--image-size", "a LoRA"),
            (self.dtype.is_some() && is_lora, "--dtype", "a LoRA"),
        ];
        match given.into_iter().find(|(unfit, ..)| *unfit) {
            Some((_, option, what)) => Err(Error::invalid_argument(format!(
                "{}: is {what}, for which there is no {option}",
                self.file.display()
            ))),
            None => Ok(()),
        }
    }
}

/// Converts the file and loads the result like the server.
///
/// # Errors
/// The file has another layout, or missing or unexpected tensors; the server would refuse the result.
pub fn run(arguments: &Arguments) -> Result<()> {
    files::require_absent(&arguments.out)?;
    let found = lora::find(&arguments.file)?;
    arguments.check(found.is_some())?;
    match found {
        Some(found) => lora::convert(&found, arguments.base.as_deref(), &arguments.out),
        None => convert_checkpoint(arguments),
    }
}

fn convert_checkpoint(arguments: &Arguments) -> Result<()> {
    let tokenizer = settings::tokenizer(arguments.tokenizer.as_deref(), arguments.config.as_deref())?;
    let source = Source::open(&arguments.file)?;
    let key_map = KeyMap::from_file(&source)?;
    let configs = match &arguments.config {
        Some(folder) => settings::configs(folder)?,
        None => config::infer(
            &key_map,
            InferOptions {
                prediction: arguments.prediction_type,
                image_size: arguments.image_size,
            },
        )?,
    };

    let parent = files::folder_of(&arguments.out);
    files::make_folder(&parent)?;
    let temporary = files::temporary_folder(&parent)?;
    let folder = temporary.path().join("folder");
    for (path, value) in &configs {
        write_json(&folder.join(path), value)?;
    }
    settings::copy_tokenizer(&tokenizer, &folder.join("tokenizer"))?;
    write_weights(&source, &key_map, &folder, arguments.dtype)?;
    verify(&folder, &arguments.out, None, &ModelParameters::default())?;
    fs::rename(&folder, &arguments.out).map_err(|error| files::failed(&arguments.out, &error))?;
    for (reason, count) in key_map.skipped() {
        output::print(format_args!("skipped {count} tensors: {reason}"));
    }
    output::print(arguments.out.display());
    Ok(())
}

fn write_weights(source: &Source, key_map: &KeyMap, folder: &Path, dtype: Option<Float>) -> Result<()> {
    let bar = progress::bytes(key_map.bytes(), "weights");
    let notes = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    for component in Component::ALL {
        let mut entries = key_map.entries(component);
        for entry in &mut entries {
            entry.dtype = target(entry.dtype, dtype);
        }
        let path = folder.join(component.weights());
        files::make_folder(&files::folder_of(&path))?;
        tensors::write(&path, source, entries, &notes, |bytes| bar.inc(bytes))?;
    }
    bar.finish_and_clear();
    Ok(())
}

/// Refuses pickles (`.ckpt`, `.pt`, `.bin`), which can run code when they are read. Their contents identify them: those
/// of torch are zip archives, older ones begin with the pickle itself.
fn refuse_pickle(path: &Path) -> Result<()> {
    let mut begin = Vec::new();
    files::open(path)?
        .take(4)
        .read_to_end(&mut begin)
        .map_err(|error| files::failed(path, &error))?;
    if begin.starts_with(b"PK\x03\x04") || matches!(begin.as_slice(), [0x80, 1..=5, ..]) {
        return Err(Error::unsupported(format!(
            "{}: a pickled checkpoint can run code and is not read; save it as safetensors first",
            path.display()
        )));
    }
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    files::make_folder(&files::folder_of(path))?;
    let text =
        serde_json::to_string_pretty(value).map_err(|error| Error::internal(format!("{}: {error}", path.display())))?;
    files::write(path, (text + "\n").as_bytes())
}
