//! `inspect`: reports the contents of a folder, and whether the server would load it.

mod report;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use diffusion_core::{Error, Result};

use crate::output;

pub use report::Report;

/// Reports the contents of a diffusers folder, and whether the server would load it
#[derive(Args)]
pub struct Arguments {
    /// The folder with model_index.json
    folder: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Read only configurations and the headers of weight files; do not load the model
    #[arg(long)]
    quick: bool,
}

/// Prints the report; fails if the server would refuse the folder.
///
/// # Errors
/// The folder cannot be read.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let report = Report::of(&arguments.folder, !arguments.quick)?;
    if arguments.json {
        let json =
            serde_json::to_string_pretty(&report).map_err(|error| Error::internal(format!("the report: {error}")))?;
        output::print(json);
    } else {
        output::print(text::text(&report).trim_end());
    }
    Ok(if report.problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
