//! `decoder`: the network that turns latents into images.

/// The network that turns latents into images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Decoder {
    /// The decoder of the VAE.
    #[default]
    Vae,
    /// The decoder of an `AutoencoderTiny`: faster, with another image.
    Tiny,
}

impl Decoder {
    /// Every decoder, by the name it has in `gen_args`.
    pub const ALL: [(&'static str, Self); 2] = [("vae", Self::Vae), ("tiny", Self::Tiny)];

    /// Returns the name in `gen_args`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vae => "vae",
            Self::Tiny => "tiny",
        }
    }
}
