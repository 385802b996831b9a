//! `repo`: makes a model repository of links to checkpoints.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use clap::Args;
use diffusion_core::{Context, Error, Result};

use crate::check::ParameterArguments;
use crate::inspect::Report;
use crate::model_config::{Kind, config_pbtxt, cpu_pbtxt};
use crate::pack::{CHECKPOINT, model_name};
use crate::verify::refused;
use crate::{files, output};

/// Makes a model repository that links to checkpoints, for a server on this machine
#[derive(Args)]
pub struct Arguments {
    /// Diffusers folders; NAME=FOLDER gives a model another name than its folder has
    #[arg(required = true, value_name = "[NAME=]FOLDER")]
    folders: Vec<String>,
    /// The model repository
    #[arg(long, default_value = "model_repository")]
    out: PathBuf,
    /// The device in config.pbtxt; configs/cpu.pbtxt for --model-config-name=cpu is always written
    #[arg(long, value_enum, default_value_t = Kind::Gpu)]
    kind: Kind,
    /// Let requests ask for their progress, over gRPC streams and generate_stream only; SageMaker refuses such models
    #[arg(long)]
    decoupled: bool,
    #[command(flatten)]
    parameters: ParameterArguments,
}

/// A model of the new repository.
struct Model {
    folder: PathBuf,
    pipeline: String,
}

/// Makes the repository, or adds models to it; makes nothing if the server would refuse one of the folders.
///
/// # Errors
/// The server's error for a folder; a name that exists; errors of files.
pub fn run(arguments: &Arguments) -> Result<()> {
    arguments.parameters.read()?;
    let parameters = arguments.parameters.pairs()?;
    let mut models = BTreeMap::new();
    for argument in &arguments.folders {
        let (name, folder) = with_name(argument)?;
        let target = arguments.out.join(&name);
        files::require_absent(&target)?;
        let model = read(&folder)?;
        if models.insert(name.clone(), model).is_some() {
            return Err(Error::invalid_argument(format!(
                "two models are called {name}: give one another name with NAME=FOLDER"
            )));
        }
    }
    files::make_folder(&arguments.out)?;
    for (name, model) in models {
        let temporary = files::temporary_folder(&arguments.out)?;
        let staged = temporary.path().join(&name);
        files::make_folder(&staged.join("1"))?;
        files::make_folder(&staged.join("configs"))?;
        let config = config_pbtxt(&model.pipeline, arguments.kind, arguments.decoupled, &parameters);
        files::write(&staged.join("config.pbtxt"), config.as_bytes())?;
        let cpu = cpu_pbtxt(&model.pipeline, arguments.decoupled, &parameters);
        files::write(&staged.join("configs/cpu.pbtxt"), cpu.as_bytes())?;
        let link = staged.join(CHECKPOINT);
        symlink(&model.folder, &link).map_err(|error| files::failed(&link, &error))?;
        let target = arguments.out.join(&name);
        fs::rename(&staged, &target).map_err(|error| files::failed(&target, &error))?;
        output::print(format_args!(
            "{}: {}, {}",
            target.display(),
            model.pipeline,
            model.folder.display()
        ));
    }
    Ok(())
}

/// Checks that the folder has everything that serving needs.
fn read(folder: &Path) -> Result<Model> {
    let report = Report::of(folder, false)?;
    if let Some(problem) = report.problems.into_iter().next() {
        return Err(refused(&problem));
    }
    Ok(Model {
        folder: fs::canonicalize(folder).map_err(|error| files::failed(folder, &error))?,
        pipeline: report.pipeline.unwrap_or_default(),
    })
}

/// Splits an argument into the name of the model and its folder.
fn with_name(argument: &str) -> Result<(String, PathBuf)> {
    if let Some((name, folder)) = argument.split_once('=')
        && !Path::new(argument).exists()
    {
        return Ok((model_name(name)?.to_owned(), PathBuf::from(folder)));
    }
    let folder = PathBuf::from(argument);
    let name = folder_name(&folder).unwrap_or_default();
    let name = model_name(&name).context(|| format!("{argument}: give the model a name with NAME=FOLDER"))?;
    Ok((name.to_owned(), folder))
}

/// Returns the name of a folder: in the Hugging Face cache (`models--ORG--NAME/snapshots/COMMIT`) the repository's
/// name.
fn folder_name(folder: &Path) -> Option<String> {
    let whole = fs::canonicalize(folder).ok()?;
    let mut parts = whole.iter().rev().filter_map(|part| part.to_str());
    let (own, above, repository) = (parts.next()?, parts.next(), parts.next());
    if above == Some("snapshots")
        && let Some(name) = repository.and_then(|name| name.strip_prefix("models--"))
    {
        return name.rsplit("--").next().map(str::to_owned);
    }
    // If it is a link, the name of the link.
    let seen = folder.file_name().and_then(|name| name.to_str());
    Some(seen.unwrap_or(own).to_owned())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn name_of_a_folder_in_the_cache_is_that_of_its_repository() {
        let root = tempfile::tempdir().unwrap();
        let snapshot = root.path().join("models--org--stable-diffusion/snapshots/0123abcd");
        fs::create_dir_all(&snapshot).unwrap();
        let text = snapshot.display().to_string();
        assert_eq!(
            with_name(&text).unwrap(),
            ("stable-diffusion".to_owned(), snapshot.clone())
        );
        assert_eq!(
            with_name(&format!("base={text}")).unwrap(),
            ("base".to_owned(), snapshot)
        );
    }
}
