//! Checks that the configurations of all networks use.

use diffusion_core::{Error, Result};

/// Fails with `InvalidArgument` and the text `what`, which names the key, unless the values of `file` are `valid`.
pub fn ensure(valid: bool, file: &str, what: &str) -> Result<()> {
    if valid {
        return Ok(());
    }
    Err(Error::invalid_argument(format!("{file}: {what}")))
}

/// Fails with `Unsupported` unless each key has a supported value.
pub fn check_supported(file: &str, keys: &[(&str, bool)]) -> Result<()> {
    match keys.iter().find(|(_, supported)| !supported) {
        Some((key, _)) => Err(Error::unsupported(format!(
            "{file}: {key} is set to a value that is not supported"
        ))),
        None => Ok(()),
    }
}

/// Returns the channels of the outermost and the innermost block.
pub fn ends(block_out_channels: &[i64]) -> (i64, i64) {
    let first = block_out_channels.first().copied().unwrap_or_default();
    (first, block_out_channels.last().copied().unwrap_or(first))
}
