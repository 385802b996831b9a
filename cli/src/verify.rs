//! The last check of a folder that was made: the server's own code loads it.

use std::path::Path;

use diffusion_core::config::ModelParameters;
use diffusion_core::{Error, Result};

use crate::check::check;
use crate::inspect::Report;
use crate::{output, progress};

/// Loads the folder `staged`, and the LoRA of a model, like the server and prints the server's warnings. Messages name the folder `shown`, which
/// the user knows.
///
/// # Errors
/// The server's error.
pub fn verify(staged: &Path, shown: &Path, lora: Option<&Path>, parameters: &ModelParameters) -> Result<()> {
    let report = Report::of(staged, false)?;
    let spinner = progress::spinner("checking");
    let outcome = match report.problems.first() {
        Some(problem) => Err(Error::invalid_argument(problem.clone())),
        None => check(staged, lora, parameters, report.dtype()),
    };
    spinner.finish_and_clear();
    let rename = |text: &str| text.replace(&staged.display().to_string(), &shown.display().to_string());
    let checked = outcome.map_err(|error| refused(&rename(&error.to_string())))?;
    for warning in checked.warnings {
        output::status(format_args!("warning: {}", rename(&warning)));
    }
    Ok(())
}

/// Makes the error for a folder that the server would refuse.
pub fn refused(problem: &str) -> Error {
    Error::invalid_argument(format!("the server would refuse this model: {problem}"))
}
