//! Names of models.

use diffusion_core::{Error, Result};

/// Longest name, in bytes.
const MAX_NAME: usize = 128;

/// Checks a name that is valid for a folder, an archive, a URL and Triton: letters, digits, `.`, `_` and `-`; the first
/// is a letter or a digit.
///
/// # Errors
/// `InvalidArgument` with this rule.
pub fn model_name(name: &str) -> Result<&str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let fits =
        (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(plain) && name.as_bytes()[0].is_ascii_alphanumeric();
    if fits {
        return Ok(name);
    }
    Err(Error::invalid_argument(format!(
        "a model's name must have 1 to {MAX_NAME} letters, digits, `.`, `_` or `-`, and begin with a letter or a digit"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_name_that_is_a_path_or_hidden_is_refused() {
        for good in ["sd_base", "sd2.1-base", "1"] {
            assert!(model_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".hidden", "a/b", "a b", "-x", "mod\u{e8}le", "a\0"] {
            assert!(model_name(bad).is_err(), "{bad}");
        }
    }
}
