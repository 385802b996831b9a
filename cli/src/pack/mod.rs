//! `pack`: a checkpoint as the archive that a multi-model endpoint loads.

mod archive;
mod name;
mod stage;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use diffusion_core::config;
use diffusion_core::{Error, Result};
use indicatif::HumanBytes;
use triton_diffusion::weights::Variant;

use crate::check::{ParameterArguments, check};
use crate::dtype::Float;
use crate::inspect::Report;
use crate::model_config::Kind;
use crate::{files, output, progress};

pub use name::model_name;
pub use stage::CHECKPOINT;

/// What an archive's name ends with.
const ARCHIVE: &str = ".tar.gz";

/// Checks a diffusers folder and packs it as a Triton model, for a SageMaker multi-model endpoint or a model repository
#[derive(Args)]
pub struct Arguments {
    /// The diffusers folder, with model_index.json
    folder: PathBuf,
    /// The model's name
    #[arg(long)]
    name: String,
    /// Keep the weights in this dtype; those of the folder's fp16 variant are taken for float16 if there is one
    #[arg(long)]
    dtype: Option<Float>,
    /// An archive (.tar.gz), or a model repository in which the model's folder is made [default: NAME.tar.gz]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Where config.pbtxt puts the model; configs/cpu.pbtxt for --model-config-name=cpu is there with either
    #[arg(long, value_enum, default_value_t = Kind::Gpu)]
    kind: Kind,
    #[command(flatten)]
    parameters: ParameterArguments,
    /// gzip's level, 0 to 9: weights hardly get smaller with more
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=9))]
    compression: u32,
}

/// Packs the folder.
///
/// # Errors
/// What is wrong with the folder, as the server would say it; those of the files.
pub fn run(arguments: &Arguments) -> Result<()> {
    let name = model_name(&arguments.name)?;
    let parameters = arguments.parameters.read()?;
    let mut pairs = arguments.parameters.pairs()?;
    if pairs.contains_key("checkpoint") {
        return Err(Error::invalid_argument(
            "--parameter checkpoint: pack decides where the checkpoint lies",
        ));
    }
    // On a GPU `auto` computes in float16, which does not reach as far as bfloat16.
    if arguments.dtype == Some(Float::Bfloat16) && !pairs.contains_key("dtype") {
        pairs.insert("dtype".into(), Float::Bfloat16.name().into());
    }
    let out = match &arguments.out {
        Some(out) => out.clone(),
        None => PathBuf::from(format!("{name}{ARCHIVE}")),
    };
    let is_archive = out.as_os_str().as_encoded_bytes().ends_with(ARCHIVE.as_bytes());
    let beside = if is_archive {
        files::folder_of(&out)
    } else {
        out.clone()
    };
    files::make_folder(&beside)?;
    let target = out.join(name);
    if !is_archive && target.exists() {
        return Err(Error::invalid_argument(format!(
            "{}: there is something of this name already",
            target.display()
        )));
    }

    let prefer = match arguments.dtype {
        Some(Float::Float16) => Variant::Fp16,
        _ => Variant::Main,
    };
    // First where the files are: only there it can be seen what lies beside them instead.
    let report = Report::of(&arguments.folder, false)?;
    if let Some(problem) = report.problems.into_iter().next() {
        return Err(refused(&problem));
    }
    let temporary = files::temporary_folder(&beside)?;
    let model = temporary.path().join(name);
    stage::checkpoint(&arguments.folder, &model, prefer, arguments.dtype, !is_archive)?;
    stage::configuration(
        &model,
        report.pipeline.as_deref().unwrap_or_default(),
        arguments.kind,
        &pairs,
    )?;
    verify(&arguments.folder, &model.join(CHECKPOINT), &parameters)?;

    if is_archive {
        archive::write(&out, &model, name, arguments.compression)?;
        output::line(format_args!("{}: {}", out.display(), HumanBytes(files::length(&out)?)));
    } else {
        fs::rename(&model, &target).map_err(|error| files::failed(&target, &error))?;
        output::line(target.display());
    }
    Ok(())
}

/// Loads what is going to be packed as the server would. Errors speak of the folder that the user knows.
fn verify(folder: &Path, staged: &Path, parameters: &config::ModelParameters) -> Result<()> {
    let report = Report::of(staged, false)?;
    let spinner = progress::spinner("checking");
    let outcome = match report.problems.first() {
        Some(problem) => Err(Error::invalid_argument(problem.clone())),
        None => check(staged, parameters, report.dtype()),
    };
    spinner.finish_and_clear();
    let names = |text: &str| text.replace(&staged.display().to_string(), &folder.display().to_string());
    match outcome {
        Ok(loadable) => {
            for warning in loadable.warnings {
                output::aside(format_args!("warning: {}", names(&warning)));
            }
            Ok(())
        }
        Err(error) => Err(refused(&names(&error.to_string()))),
    }
}

/// The error for a folder that the server would refuse.
pub fn refused(problem: &str) -> Error {
    Error::invalid_argument(format!("the server would refuse this model: {problem}"))
}
