//! The parameter `base`: how a model names the checkpoint that it shares with others.

use std::path::PathBuf;

use crate::quote::is_file_name;

/// The checkpoint that a model shares with others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// A model of the same repository.
    Model(String),
    /// A diffusers folder, relative to the version folder or absolute.
    Folder(PathBuf),
    /// A checkpoint by what is in it: [`Base::DIGEST`] and 64 hexadecimal digits.
    Digest(String),
}

impl Base {
    /// How a digest begins.
    pub const DIGEST: &str = "blake3:";

    /// Reads a base: a digest, a path with a `/`, or the name of a model. `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(digest) = text.strip_prefix(Self::DIGEST) {
            let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            let fits = digest.len() == 64 && digest.bytes().all(is_digit);
            return fits.then(|| Self::Digest(text.to_owned()));
        }
        if text.contains('/') && !text.contains('\0') {
            return Some(Self::Folder(PathBuf::from(text)));
        }
        is_file_name(text).then(|| Self::Model(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_is_a_digest_a_path_or_the_name_of_a_model() {
        let digest = format!("blake3:{}", "0af9".repeat(16));
        for (text, base) in [
            (digest.as_str(), Base::Digest(digest.clone())),
            (
                "../../sd/1/checkpoint",
                Base::Folder(PathBuf::from("../../sd/1/checkpoint")),
            ),
            ("./base", Base::Folder(PathBuf::from("./base"))),
            ("sd2.1-base", Base::Model("sd2.1-base".to_owned())),
        ] {
            assert_eq!(Base::parse(text), Some(base));
        }
        assert_eq!(Base::parse(&digest.to_uppercase()), None);
    }
}
