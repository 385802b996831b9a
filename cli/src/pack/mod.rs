//! `pack`: packs a checkpoint or a LoRA as an archive for a multi-model endpoint.

mod archive;
mod name;
mod stage;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use diffusion_core::config::Base;
use diffusion_core::{Error, Result};
use indicatif::HumanBytes;
use triton_diffusion::pipelines::loading::checkpoint_digest;
use triton_diffusion::weights::Variant;

use crate::check::ParameterArguments;
use crate::dtype::Float;
use crate::inspect::Report;
use crate::model_config::Kind;
use crate::verify::{refused, verify};
use crate::{files, output};

pub use name::model_name;
pub use stage::CHECKPOINT;

/// The end of an archive's name.
const ARCHIVE: &str = ".tar.gz";

/// Checks a diffusers folder, or a LoRA for it, and packs it as a Triton model, for a SageMaker multi-model endpoint or a
/// model repository
#[derive(Args)]
pub struct Arguments {
    /// The diffusers folder, with model_index.json
    folder: PathBuf,
    /// Pack a model of this LoRA, a file or a folder of peft or diffusers, with FOLDER as its base, which is not packed
    #[arg(long, value_name = "PATH", conflicts_with = "dtype")]
    lora: Option<PathBuf>,
    /// How config.pbtxt names the base of the LoRA [default: the digest of FOLDER in an archive, its path in a repository]
    #[arg(long, requires = "lora")]
    base: Option<String>,
    /// The model's name
    #[arg(long)]
    name: String,
    /// Convert the weights to this dtype; for float16 the fp16 variant of the folder is used if it exists
    #[arg(long)]
    dtype: Option<Float>,
    /// An archive (.tar.gz), or a model repository for the model's folder [default: NAME.tar.gz]
    #[arg(long)]
    out: Option<PathBuf>,
    /// The device in config.pbtxt; configs/cpu.pbtxt for --model-config-name=cpu is always written
    #[arg(long, value_enum, default_value_t = Kind::Gpu)]
    kind: Kind,
    /// Let requests ask for their progress, over gRPC streams and generate_stream only; SageMaker refuses such models
    #[arg(long)]
    decoupled: bool,
    #[command(flatten)]
    parameters: ParameterArguments,
    /// Compression level of gzip, 0 to 9: higher levels hardly make weights smaller
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=9))]
    compression: u32,
}

/// Packs the folder.
///
/// # Errors
/// The server's error for the folder; errors of files.
pub fn run(arguments: &Arguments) -> Result<()> {
    let name = model_name(&arguments.name)?;
    let parameters = arguments.parameters.read()?;
    let mut pairs = arguments.parameters.pairs()?;
    for key in ["checkpoint", "base", "lora"] {
        if pairs.contains_key(key) {
            return Err(Error::invalid_argument(format!(
                "--parameter {key}: pack sets this parameter"
            )));
        }
    }
    // On a GPU `auto` computes in float16, whose range is smaller.
    if arguments.dtype == Some(Float::Bfloat16) && !pairs.contains_key("dtype") {
        pairs.insert("dtype".into(), Float::Bfloat16.name().into());
    }
    // SageMaker gives up then. A request that goes on would keep its model from being unloaded.
    pairs.entry("max_seconds").or_insert_with(|| "60".into());
    let out = match &arguments.out {
        Some(out) => out.clone(),
        None => PathBuf::from(format!("{name}{ARCHIVE}")),
    };
    let is_archive = out.as_os_str().as_encoded_bytes().ends_with(ARCHIVE.as_bytes());
    let parent = if is_archive {
        files::folder_of(&out)
    } else {
        out.clone()
    };
    files::make_folder(&parent)?;
    let target = out.join(name);
    if !is_archive {
        files::require_absent(&target)?;
    }

    let prefer = match arguments.dtype {
        Some(Float::Float16) => Variant::Fp16,
        _ => Variant::Main,
    };
    // Checks the original folder first: only its report can name files that are there instead of missing ones.
    let report = Report::of(&arguments.folder, false)?;
    if let Some(problem) = report.problems.into_iter().next() {
        return Err(refused(&problem));
    }
    let temporary = files::temporary_folder(&parent)?;
    let model = temporary.path().join(name);
    let digest = if let Some(lora) = &arguments.lora {
        let staged = stage::lora(lora, &model, !is_archive)?;
        let (path, name) = (model.join("1").join(staged), staged.to_owned());
        verify(&arguments.folder, &arguments.folder, Some(&path), &parameters)?;
        let base = match &arguments.base {
            Some(base) => base.clone(),
            None if is_archive => checkpoint_digest(&arguments.folder)?,
            None => whole_path(&arguments.folder)?,
        };
        if Base::parse(&base).is_none() {
            return Err(Error::invalid_argument(
                "--base: expected a digest, a path with a `/`, or the name of a model",
            ));
        }
        pairs.insert("base".into(), base.into());
        pairs.insert("lora".into(), name.into());
        None
    } else {
        stage::checkpoint(&arguments.folder, &model, prefer, arguments.dtype, !is_archive)?;
        let staged = model.join(CHECKPOINT);
        verify(&staged, &arguments.folder, None, &parameters)?;
        Some(checkpoint_digest(&staged)?)
    };
    stage::configuration(
        &model,
        report.pipeline.as_deref().unwrap_or_default(),
        (arguments.kind, arguments.decoupled),
        &pairs,
    )?;

    if is_archive {
        archive::write(&out, &model, name, arguments.compression)?;
        output::print(format_args!("{}: {}", out.display(), HumanBytes(files::length(&out)?)));
        if let Some(digest) = digest {
            output::status(format_args!("as the base of LoRA models: {digest}"));
        }
    } else {
        fs::rename(&model, &target).map_err(|error| files::failed(&target, &error))?;
        output::print(target.display());
    }
    Ok(())
}

/// Returns an absolute path as text.
fn whole_path(folder: &Path) -> Result<String> {
    let whole = fs::canonicalize(folder).map_err(|error| files::failed(folder, &error))?;
    let whole = whole.into_os_string().into_string();
    whole.map_err(|_| Error::invalid_argument("the folder: expected a path in UTF-8, or --base"))
}
