//! The Stable Diffusion pipelines of diffusers, one file each.
//!
//! A new pipeline is one file and one line in [`steps_of`].

mod depth2img;
mod img2img;
mod inpaint;
mod text2img;
mod upscale;

use super::denoising_state::{DenoisingState, PrepareContext};
use super::image_size::ImageSize;
use super::latent_tiles::{LatentTiles, TileCounts};
use crate::models::layers::ChunkSize;
use diffusion_core::Result;
use diffusion_image::RgbImage;
use diffusion_request::PipelineInputs;

/// What differs between pipelines. The denoising loop is shared.
pub trait PipelineSteps {
    /// Returns how much of a request's images is computed at once. By default that is all.
    fn at_once(&self, size: &ImageSize) -> AtOnce {
        AtOnce {
            tiles: None,
            latents: size.latents(),
            one_by_one: false,
            chunk_size: None,
        }
    }

    /// Decodes the images and prepares the denoising loop.
    ///
    /// # Errors
    /// InvalidArgument for damaged images and for a `strength` without a step.
    fn prepare(&self, context: PrepareContext<'_>) -> Result<Prepared>;
}

/// How much of a request's images is computed at once.
pub struct AtOnce {
    /// The tiles of the UNet's calls.
    pub tiles: Option<LatentTiles>,
    /// Height and width of a UNet call: those of the latents, or of a tile.
    pub latents: (i64, i64),
    /// Whether the UNet computes one batch entry at a time.
    pub one_by_one: bool,
    /// The chunks in which the VAE decodes an image; `None` if it decodes an image whole.
    pub chunk_size: Option<ChunkSize>,
}

/// The denoising loop at its start, and what follows its end.
pub type Prepared = (DenoisingState, Box<dyn Postprocess>);

/// The steps from the latents to the images of the response. By default there is only the VAE's decoder.
pub trait Postprocess {
    /// Returns the chunks to decode the latents in; `None` decodes them whole.
    fn chunk_size(&self) -> Option<ChunkSize> {
        None
    }

    /// Returns the numbers for the response, where the pipeline has tiles; `unet` is the number of UNet tiles.
    fn tile_counts(&self, _unet: usize) -> Option<TileCounts> {
        None
    }

    /// Converts a decoded image to an image of the response. `nsfw` says that the safety checker made it black.
    ///
    /// # Errors
    /// Internal if the image has an unexpected size.
    fn finish(&self, image: RgbImage, _nsfw: bool) -> Result<RgbImage> {
        Ok(image)
    }
}

/// For pipelines whose decoded images are those of the response.
struct Unchanged;

impl Postprocess for Unchanged {}

/// Returns the pipeline that the inputs belong to.
pub fn steps_of(inputs: &PipelineInputs) -> &dyn PipelineSteps {
    match inputs {
        PipelineInputs::Text2Img(inputs) => inputs,
        PipelineInputs::Img2Img(inputs) => inputs,
        PipelineInputs::Depth2Img(inputs) => inputs,
        PipelineInputs::Inpaint(inputs) => inputs,
        PipelineInputs::Upscale(inputs) => inputs,
    }
}
