//! `man`: writes the manual pages.

use std::path::PathBuf;

use clap::{Args, Command};
use diffusion_core::Result;

use crate::{files, output};

/// Writes the manual pages of this program and of its commands, in section 1
#[derive(Args)]
pub struct Arguments {
    /// The folder for the pages
    #[arg(long)]
    out: PathBuf,
}

/// Writes a page for `command`, the whole program, and one for each of its commands.
///
/// # Errors
/// Errors of the file system.
pub fn run(arguments: &Arguments, command: Command) -> Result<()> {
    files::make_folder(&arguments.out)?;
    clap_mangen::generate_to(command, &arguments.out).map_err(|error| files::failed(&arguments.out, &error))?;
    output::print(arguments.out.display());
    Ok(())
}
