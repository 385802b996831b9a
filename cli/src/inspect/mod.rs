//! `inspect`: what a folder holds, and what the server would say of it.

mod report;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use diffusion_core::{Error, Result};

use crate::output;

pub use report::Report;

/// Says what a diffusers folder holds, and what the server would say of it
#[derive(Args)]
pub struct Arguments {
    /// The folder with model_index.json
    folder: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Read configurations and the headers of weight files only, and do not load the model
    #[arg(long)]
    quick: bool,
}

/// Prints the report; fails if the folder cannot be served.
///
/// # Errors
/// The folder cannot be read at all.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let report = Report::of(&arguments.folder, !arguments.quick)?;
    if arguments.json {
        let json =
            serde_json::to_string_pretty(&report).map_err(|error| Error::internal(format!("the report: {error}")))?;
        output::line(json);
    } else {
        output::line(text::text(&report).trim_end());
    }
    Ok(if report.problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
