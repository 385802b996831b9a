//! `completions`: prints the completions of a shell.

use std::io::{Write, stdout};

use clap::{Args, Command};
use clap_complete::Shell;

/// Prints a script that completes this command's options in a shell
#[derive(Args)]
pub struct Arguments {
    /// The shell
    shell: Shell,
}

/// Prints the script for `command`, the whole program.
pub fn run(arguments: &Arguments, mut command: Command) {
    let name = command.get_name().to_owned();
    // Into memory, because `generate` panics if it cannot write. A closed pipe is not an error.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, name, &mut script);
    let _ = stdout().write_all(&script);
}
