//! File formats of generated images.

use diffusion_core::config::Format;

/// File format of an image, with its quality.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// Lossless, with the parameters in a text chunk.
    Png,
    /// Lossy.
    Jpeg {
        /// 1 to 100.
        quality: u8,
    },
    /// Lossy.
    Webp {
        /// 1 to 100.
        quality: u8,
    },
}

impl OutputFormat {
    /// Returns the format without its quality.
    pub fn format(self) -> Format {
        match self {
            Self::Png => Format::Png,
            Self::Jpeg { .. } => Format::Jpeg,
            Self::Webp { .. } => Format::Webp,
        }
    }

    /// Returns the quality of a lossy format.
    pub fn quality(self) -> Option<u8> {
        match self {
            Self::Png => None,
            Self::Jpeg { quality } | Self::Webp { quality } => Some(quality),
        }
    }
}
