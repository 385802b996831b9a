//! `preview`: how the images of progress responses are made.

/// How latents become the small images of progress responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Preview {
    /// No images, for a model that sends some by default.
    Off,
    /// A linear map from each latent pixel to a color: images of the size of the latents.
    Linear,
    /// The decoder of an `AutoencoderTiny`: images of full size.
    Tiny,
    /// The decoder of the VAE: images of full size.
    Vae,
}

impl Preview {
    /// Every kind of preview, by the name it has in `gen_args`.
    pub const ALL: [(&'static str, Self); 4] = [
        ("off", Self::Off),
        ("linear", Self::Linear),
        ("tiny", Self::Tiny),
        ("vae", Self::Vae),
    ];
}
