//! Progress bars on standard error; hidden if that is not a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Makes a bar over bytes.
pub fn bytes(total: u64, what: &str) -> ProgressBar {
    bar(
        total,
        what,
        "{msg:24} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
    )
}

/// Makes a bar over steps.
pub fn steps(total: u64, what: &str) -> ProgressBar {
    bar(total, what, "{msg:24} {wide_bar} {pos}/{len} {per_sec} {eta}")
}

/// Makes a spinner for work of unknown length.
pub fn spinner(what: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

fn bar(total: u64, what: &str, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(total).with_message(what.to_owned());
    // An invalid template would leave the default style.
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
