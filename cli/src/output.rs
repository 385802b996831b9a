//! What the program says. A reader that has gone away (`| head`) is no reason to fail.

use std::fmt::Display;
use std::io::{Write, stderr, stdout};

/// A line of the result, to standard output.
pub fn line(text: impl Display) {
    let _ = writeln!(stdout(), "{text}");
}

/// A line that is not the result, to standard error.
pub fn aside(text: impl Display) {
    let _ = writeln!(stderr(), "{text}");
}
