//! The output of the program. A closed pipe (`| head`) is not an error.

use std::fmt::Display;
use std::io::{Write, stderr, stdout};

/// Prints a line of the result to standard output.
pub fn print(text: impl Display) {
    let _ = writeln!(stdout(), "{text}");
}

/// Prints a status line to standard error.
pub fn status(text: impl Display) {
    let _ = writeln!(stderr(), "{text}");
}
