//! The size of what a request generates.

use super::loading::Components;
use diffusion_request::GenerateRequest;

/// The size of what a request generates.
#[derive(Clone, Copy, Debug)]
pub struct ImageSize {
    /// In pixels.
    pub height: i64,
    /// In pixels.
    pub width: i64,
    /// Pixels per latent along each side.
    pub scale_factor: i64,
    /// Pixels up to which an enlarged image is generated whole.
    pub max_chunk_pixels: i64,
}

impl ImageSize {
    /// Returns the size of what `request` generates with these components.
    pub fn new(components: &Components, request: &GenerateRequest, max_chunk_pixels: u64) -> Self {
        Self {
            height: request.height.into(),
            width: request.width.into(),
            scale_factor: components.vae.config().scale_factor(),
            max_chunk_pixels: i64::try_from(max_chunk_pixels).unwrap_or(i64::MAX),
        }
    }

    /// Returns height and width of the latents.
    pub fn latents(&self) -> (i64, i64) {
        (self.height / self.scale_factor, self.width / self.scale_factor)
    }
}
