//! `StableDiffusionUpscalePipeline`.
//!
//! Source: diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion_upscale.py`.

use tch::Tensor;

use crate::models::layers::ChunkSize;
use crate::pipelines::denoising_state::{Setup, Start};
use crate::pipelines::latent_tiles::Tiles;
use crate::processors::vae::tensor;
use diffusion_core::{Error, Result};
use diffusion_image::RgbImage;
use diffusion_image::resize::{self, Filter};

/// How much more of an image the UNet can see than the VAE can decode in the same memory: its widest maps have the size of
/// the latents, a sixteenth of those that the VAE ends with.
const UNET_SHARE: i64 = 4;
/// Chunks that the VAE decodes what would fit into memory whole in.
const STRIPS: u64 = 64;

/// The chunks that an image of that size in pixels is decoded in, if it is not decoded whole.
pub fn chunks(height: u32, width: u32, max_piece_pixels: u64) -> Option<ChunkSize> {
    let pixels = u64::from(height) * u64::from(width);
    (pixels > max_piece_pixels).then(|| ChunkSize {
        values: i64::try_from(max_piece_pixels / STRIPS).unwrap_or(i64::MAX),
    })
}

/// Noise beside the image, which is noisy itself, as three more channels for the UNet. The latents are as
/// large as the image.
///
/// # Errors
/// Out of memory.
pub fn start(mut setup: Setup<'_>, image: &RgbImage, noise_level: i64, max_piece_pixels: u64) -> Result<Start> {
    let (height, width) = setup.latent_size();
    let side = |n: i64| u32::try_from(n).map_err(|_| Error::internal("a side beyond 32 bits"));
    let image = resize::rgb(image, side(width)?, side(height)?, Filter::Bicubic)?;
    let image = setup.place(&tensor(&image)?)?;
    let noise = setup.noise(&image.size())?;
    let low_res_scheduler = setup
        .components
        .low_res_scheduler
        .as_ref()
        .ok_or_else(|| Error::internal("the model has no low_res_scheduler"))?;
    let image = low_res_scheduler.add_noise(&image, &noise, noise_level)?;
    let latents = setup
        .noise(&setup.latent_shape())?
        .f_mul_scalar(setup.scheduler.init_noise_sigma())?;
    let factor = setup.components.vae.config().scale_factor();
    let piece = i64::try_from(max_piece_pixels).unwrap_or(i64::MAX) / (factor * factor);
    Ok(Start {
        conditioning: Some(Tensor::f_cat(&vec![&image; setup.images as usize], 0)?),
        class_label: Some(Tensor::f_from_slice(&[noise_level])?.f_to_device(setup.components.device)?),
        tiles: Tiles::needed(height, width, piece.saturating_mul(UNET_SHARE)),
        row_by_row: height.saturating_mul(width) > piece,
        ..Start::from(latents)
    })
}
