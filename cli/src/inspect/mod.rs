//! `inspect`: reports the contents of a folder, and whether the server would load it; or what an adapter's file changes.

mod embedding;
mod lora;
mod report;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use diffusion_core::{Error, Result};
use serde::Serialize;

use crate::output;

use lora::LoraReport;
pub use report::Report;

/// Reports the contents of a diffusers folder, and whether the server would load it; or what an adapter's file changes
#[derive(Args)]
pub struct Arguments {
    /// The folder with model_index.json, or the file of a LoRA or of a textual inversion
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
    if arguments.folder.is_file() {
        if let Some(report) = embedding::read(&arguments.folder)? {
            return print(arguments, &report, &report.text(), report.problems.is_empty());
        }
        let report = LoraReport::of(&arguments.folder)?;
        return print(arguments, &report, &report.text(), report.problems.is_empty());
    }
    let report = Report::of(&arguments.folder, !arguments.quick)?;
    print(arguments, &report, &text::text(&report), report.problems.is_empty())
}

/// Prints a report as JSON or as text.
fn print(arguments: &Arguments, report: &impl Serialize, text: &str, good: bool) -> Result<ExitCode> {
    if arguments.json {
        let json =
            serde_json::to_string_pretty(report).map_err(|error| Error::internal(format!("the report: {error}")))?;
        output::print(json);
    } else {
        output::print(text.trim_end());
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
