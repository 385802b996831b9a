//! `convert`: a single file in the layout of the original code as a diffusers folder.

mod clip;
mod config;
mod layout;
mod settings;
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

use crate::check::check;
use crate::dtype::{Float, target};
use crate::inspect::Report;
use crate::tensors::{self, Source};
use crate::{files, output, progress};

use config::{Prediction, Wanted};
use layout::{Component, Layout};

/// Converts a single-file checkpoint of Stable Diffusion 1 or 2 (the layout of A1111 and ComfyUI) into a diffusers folder
#[derive(Args)]
pub struct Arguments {
    /// The checkpoint, a safetensors file
    file: PathBuf,
    /// The diffusers folder that is made
    #[arg(long)]
    out: PathBuf,
    /// A folder with vocab.json and merges.txt, or a diffusers folder with tokenizer/ in it: the file holds no tokenizer
    #[arg(long, value_name = "FOLDER")]
    tokenizer: Option<PathBuf>,
    /// A diffusers folder whose configurations are taken, and the tokenizer too, instead of such as the shapes tell
    #[arg(long, value_name = "FOLDER")]
    config: Option<PathBuf>,
    /// What the UNet predicts; no shape tells, so that it must be said for Stable Diffusion 2
    #[arg(long, value_enum, conflicts_with = "config")]
    prediction_type: Option<Prediction>,
    /// Pixels along a side of the images that the model was trained on [default: 512; 768 with v_prediction]
    #[arg(long, value_name = "PIXELS", conflicts_with = "config", value_parser = clap::value_parser!(u32).range(64..=4096))]
    image_size: Option<u32>,
    /// Keep the weights in this dtype [default: that of the file]
    #[arg(long)]
    dtype: Option<Float>,
}

/// Converts the file, and lets the server's code load the result.
///
/// # Errors
/// The file is none of the layout, lacks a part, or has one too many; the folder could not be served.
pub fn run(arguments: &Arguments) -> Result<()> {
    refuse_pickle(&arguments.file)?;
    if arguments.out.exists() {
        return Err(Error::invalid_argument(format!(
            "{}: there is something of this name already",
            arguments.out.display()
        )));
    }
    let tokenizer = settings::tokenizer(arguments.tokenizer.as_deref(), arguments.config.as_deref())?;
    let source = Source::open(&arguments.file)?;
    let layout = Layout::of(&source)?;
    let configs = match &arguments.config {
        Some(folder) => settings::configs(folder)?,
        None => config::infer(
            &layout,
            Wanted {
                prediction: arguments.prediction_type,
                image_size: arguments.image_size,
            },
        )?,
    };

    let beside = files::folder_of(&arguments.out);
    files::make_folder(&beside)?;
    let temporary = files::temporary_folder(&beside)?;
    let folder = temporary.path().join("folder");
    for (path, value) in &configs {
        write_json(&folder.join(path), value)?;
    }
    settings::copy_tokenizer(&tokenizer, &folder.join("tokenizer"))?;
    write_weights(&source, &layout, &folder, arguments.dtype)?;
    verify(&folder)?;
    fs::rename(&folder, &arguments.out).map_err(|error| files::failed(&arguments.out, &error))?;
    for (why, count) in layout.left_out() {
        output::line(format_args!("left out: {count} tensor(s), {why}"));
    }
    output::line(arguments.out.display());
    Ok(())
}

fn write_weights(source: &Source, layout: &Layout, folder: &Path, dtype: Option<Float>) -> Result<()> {
    let bar = progress::bytes(layout.bytes(), "weights");
    let notes = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    for component in Component::ALL {
        let mut entries = layout.entries(component);
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

/// Loads the new folder as the server would.
fn verify(folder: &Path) -> Result<()> {
    let report = Report::of(folder, false)?;
    let spinner = progress::spinner("checking");
    let outcome = match report.problems.first() {
        Some(problem) => Err(Error::invalid_argument(problem.clone())),
        None => check(folder, &ModelParameters::default(), report.dtype()).map(drop),
    };
    spinner.finish_and_clear();
    outcome.map_err(|error| {
        let text = error.to_string().replace(&format!("{}/", folder.display()), "");
        Error::invalid_argument(format!("the server would refuse the converted folder: {text}"))
    })
}

/// Pickles (`.ckpt`, `.pt`, `.bin`) can run code when they are read. They are known by their contents, whatever they are called:
/// torch's are zip archives, older ones begin with the pickle itself.
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
