//! `StableDiffusionUpscalePipeline`.
//!
//! Source: diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion_upscale.py`.

use tch::Tensor;

use super::{PipelineSteps, Postprocess, Prepared};
use crate::models::layers::ChunkSize;
use crate::pipelines::denoising_state::{DenoisingState, PrepareContext};
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
const CHUNKS: u64 = 64;

impl PipelineSteps for Upscale {
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
        let factor = context.components.vae.config().scale_factor();
        let max_latents = i64::try_from(context.max_chunk_pixels).unwrap_or(i64::MAX) / (factor * factor);
        let state = DenoisingState {
            conditioning: Some(Tensor::f_cat(&vec![&image; context.images as usize], 0)?),
            class_label: Some(context.stream.to_device(&Tensor::f_from_slice(&[noise_level])?)?),
            tiles: LatentTiles::new(height, width, max_latents.saturating_mul(UNET_SHARE)),
            one_by_one: height.saturating_mul(width) > max_latents,
            ..DenoisingState::new(latents)
        };
        let (height, width) = (context.request.height, context.request.width);
        let decoding = ChunkedDecoding {
            height: height.into(),
            width: width.into(),
            chunk_size: (u64::from(height) * u64::from(width) > context.max_chunk_pixels).then(|| ChunkSize {
                values: i64::try_from(context.max_chunk_pixels / CHUNKS).unwrap_or(i64::MAX),
            }),
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
