//! Names of models.

use diffusion_core::{Error, Result};

/// Longest name, in bytes.
const MAX_NAME: usize = 128;

/// A name that a folder, an archive, a URL and Triton take: letters, digits, `.`, `_` and `-`, and no `.` first.
///
/// # Errors
/// `InvalidArgument` that says so.
pub fn model_name(name: &str) -> Result<&str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let fits =
        (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(plain) && name.as_bytes()[0].is_ascii_alphanumeric();
    if fits {
        return Ok(name);
    }
    Err(Error::invalid_argument(format!(
        "a model's name has 1 to {MAX_NAME} letters, digits, `.`, `_` and `-`, the first a letter or a digit"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_paths_or_hidden_are_refused() {
        for good in ["sd_base", "sd2.1-base", "1"] {
            assert!(model_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".hidden", "a/b", "a b", "-x", "mod\u{e8}le", "a\0"] {
            assert!(model_name(bad).is_err(), "{bad}");
        }
    }
}
