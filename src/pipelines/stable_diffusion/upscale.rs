//! `StableDiffusionUpscalePipeline`.
//!
//! Source: diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion_upscale.py`.

use tch::Tensor;

use super::{AtOnce, PipelineSteps, Postprocess, Prepared};
use crate::models::layers::ChunkSize;
use crate::pipelines::denoising_state::{DenoisingState, PrepareContext};
use crate::pipelines::image_size::ImageSize;
use crate::pipelines::latent_tiles::{LatentTiles, TileCounts};
use crate::processors::vae::image_to_tensor;
use crate::torch::numbers::NumberOperators;
use diffusion_core::{Error, Result};
use diffusion_image::resize::{Filter, resize};
use diffusion_request::Upscale;

/// How much larger the UNet's tiles may be than the area that the VAE decodes in the same memory. The UNet's widest maps
/// have the size of the latents, a sixteenth of the VAE's last maps.
const UNET_SHARE: i64 = 4;
/// An image of `max_chunk_pixels` would be decoded in this many chunks; larger images have chunks of the same size.
const CHUNKS: i64 = 64;

impl PipelineSteps for Upscale {
    /// Computes a large image in tiles, and decodes it in chunks.
    fn at_once(&self, size: &ImageSize) -> AtOnce {
        let (height, width) = size.latents();
        let max_latents = size.max_chunk_pixels / (size.scale_factor * size.scale_factor);
        let tiles = LatentTiles::new(height, width, max_latents.saturating_mul(UNET_SHARE));
        let is_large = size.height.saturating_mul(size.width) > size.max_chunk_pixels;
        AtOnce {
            latents: tiles.as_ref().map_or((height, width), LatentTiles::tile_size),
            tiles,
            one_by_one: height.saturating_mul(width) > max_latents,
            chunk_size: is_large.then_some(ChunkSize {
                values: size.max_chunk_pixels / CHUNKS,
            }),
        }
    }

    /// Prepares noise, and the noisy image as three more UNet channels. The latents are as large as the image.
    fn prepare(&self, mut context: PrepareContext<'_>) -> Result<Prepared> {
        let (height, width) = context.latent_size();
        let side = |n: i64| u32::try_from(n).map_err(|_| Error::internal("a side beyond 32 bits"));
        let image = resize(&self.image.rgb()?, side(width)?, side(height)?, Filter::Bicubic)?;
        let image = context.to_device(&image_to_tensor(&image)?)?;
        let noise = context.noise(&image.size())?;
        let low_res_scheduler = context
            .components
            .low_res_scheduler
            .as_ref()
            .ok_or_else(|| Error::internal("the model has no low_res_scheduler"))?;
        let noise_level = i64::from(self.noise_level);
        let image = low_res_scheduler.add_noise(&image, &noise, noise_level)?;
        let latents = context
            .noise(&context.latent_shape())?
            .mul_number(context.scheduler.init_noise_sigma())?;
        let size = context.image_size();
        let at_once = self.at_once(&size);
        let state = DenoisingState {
            conditioning: Some(Tensor::f_cat(&vec![&image; context.images as usize], 0)?),
            class_label: Some(context.stream.to_device(&Tensor::f_from_slice(&[noise_level])?)?),
            tiles: at_once.tiles,
            one_by_one: at_once.one_by_one,
            ..DenoisingState::new(latents)
        };
        let decoding = ChunkedDecoding {
            height: size.height,
            width: size.width,
            chunk_size: at_once.chunk_size,
        };
        Ok((state, Box::new(decoding)))
    }
}

/// Decodes an image of `height` times `width` pixels in chunks if it is large.
struct ChunkedDecoding {
    height: i64,
    width: i64,
    chunk_size: Option<ChunkSize>,
}

impl Postprocess for ChunkedDecoding {
    fn chunk_size(&self) -> Option<ChunkSize> {
        self.chunk_size
    }

    fn tile_counts(&self, unet: usize) -> Option<TileCounts> {
        let chunks = self.chunk_size.map(|size| size.count(self.height, self.width));
        Some(TileCounts {
            unet,
            vae: chunks.unwrap_or(1),
        })
    }
}
