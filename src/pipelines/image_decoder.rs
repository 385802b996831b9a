//! The network that turns the latents of a job into images.

use tch::{Kind, Tensor};

use crate::models::layers::ChunkSize;
use crate::models::vae::{AutoencoderKl, AutoencoderTiny};
use crate::torch::{cpu_allocator, memory};
use diffusion_core::Result;

/// One of the decoders of a model.
pub enum ImageDecoder<'a> {
    /// `vae/`.
    Vae(&'a AutoencoderKl),
    /// `vae_tiny/`.
    Tiny(&'a AutoencoderTiny),
}

impl ImageDecoder<'_> {
    /// Returns the dtype of the latents.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Vae(vae) => vae.kind(),
            Self::Tiny(tiny) => tiny.kind(),
        }
    }

    /// Returns what the UNet's latents are divided by before they are decoded.
    pub fn scaling_factor(&self) -> f64 {
        match self {
            Self::Vae(vae) => vae.config().scaling_factor,
            Self::Tiny(tiny) => tiny.config().scaling_factor,
        }
    }

    /// Decodes latents, and in chunks if a size is given, which the tiny decoder does not need.
    ///
    /// # Shapes
    /// - `latents`: `[images, channels, height, width]`
    /// - returns `[images, 3, height·f, width·f]`, about -1 to 1
    pub fn decode(&self, latents: &Tensor, chunks: Option<ChunkSize>) -> Result<Tensor> {
        match (self, chunks) {
            (Self::Vae(vae), Some(size)) => {
                cpu_allocator::trim();
                memory::trim();
                vae.decode_chunked(latents, size)
            }
            (Self::Vae(vae), None) => vae.decode(latents),
            (Self::Tiny(tiny), _) => tiny.decode(latents),
        }
    }
}
