//! `StableDiffusionInpaintPipeline`, for UNets with and without channels for the mask.
//!
//! Source: diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion_inpaint.py` and `image_processor.py`.

use tch::{Kind, Tensor};

use super::{PipelineSteps, Postprocess, Prepared};
use crate::pipelines::denoising_state::{DenoisingState, PrepareContext, UnmaskedLatents};
use crate::processors::vae::{image_to_tensor, mask_to_tensor};
use crate::torch::numbers::NumberOperators;
use diffusion_core::{Context, Result};
use diffusion_image::compose::{self, Region};
use diffusion_image::resize::{Filter, resize};
use diffusion_image::{Mask, RgbImage};
use diffusion_request::Inpaint;

impl PipelineSteps for Inpaint {
    fn prepare(&self, mut context: PrepareContext<'_>) -> Result<Prepared> {
        let (height, width) = (context.request.height, context.request.width);
        let from_noise = self.strength == 1.0;
        let unet_channels = context.components.unet.config().in_channels;
        let sees_mask = unet_channels != context.components.vae.config().latent_channels;

        let (original, original_mask) = (self.image.rgb()?, self.mask_image.mask()?);
        let region = self
            .padding_mask_crop
            .map(|pad| compose::crop_region(&original_mask, width, height, pad))
            .transpose()
            .context(|| "input `mask_image`")?;
        let (image, mask) = match region {
            Some(region) => (
                compose::resize_and_fill(&compose::crop(&original, region)?, width, height)?,
                compose::resize_and_fill(&compose::crop(&original_mask, region)?, width, height)?,
            ),
            None => (
                resize(&original, width, height, Filter::Lanczos)?,
                resize(&original_mask, width, height, Filter::Lanczos)?,
            ),
        };

        context.apply_strength(self.strength)?;
        let pixels = image_to_tensor(&image)?;
        let image_latents = if from_noise && sees_mask {
            None
        } else {
            let latents = context.encode(&pixels)?;
            // Unlike `cat`, `repeat` makes a contiguous copy, as in diffusers.
            Some(latents.f_repeat([context.images, 1, 1, 1])?)
        };
        let noise = context.noise(&context.latent_shape())?;
        let latents = match &image_latents {
            Some(latents) if !from_noise => context.scheduler.add_noise(latents, &noise)?,
            _ => noise.mul_number(context.scheduler.init_noise_sigma())?,
        };

        let white = binarize(&mask_to_tensor(&mask)?)?;
        let (latent_height, latent_width) = context.latent_size();
        let latent_mask = white.f_upsample_nearest2d([latent_height, latent_width], None, None)?;
        let latent_mask = context.repeat_per_image(context.to_device(&latent_mask)?)?;
        let mut state = DenoisingState::new(latents);
        if sees_mask {
            let masked = pixels.f_mul(&white.lt_number(0.5)?)?;
            let masked_latents = context.encode(&masked)?;
            let masked_latents = context.repeat_per_image(masked_latents)?;
            state.conditioning = Some(Tensor::f_cat(&[latent_mask, masked_latents], 1)?);
        } else {
            // diffusers encodes the masked image here, too, and does not use the result. Its noise must be drawn all the
            // same: samplers draw after it.
            let shape = context.latent_shape();
            let _unused = context.noise(&[1, shape[1], shape[2], shape[3]])?;
            state.unmasked = image_latents.map(|image_latents| UnmaskedLatents {
                mask: latent_mask,
                image_latents,
                noise,
            });
        }
        let (image, mask) = match region {
            Some(_) => (original, original_mask),
            None => (image, mask),
        };
        let paste = Paste {
            image,
            mask,
            region,
            keep_unmasked: self.keep_unmasked,
        };
        Ok((state, Box::new(paste)))
    }
}

/// Puts a generated image into the input image.
struct Paste {
    /// The original with a `region`, else resized to the size of what is generated.
    image: RgbImage,
    /// As `image`.
    mask: Mask,
    /// The part of the image that is generated, if not all of it.
    region: Option<Region>,
    keep_unmasked: bool,
}

impl Postprocess for Paste {
    /// Pastes the image into its region and restores the kept pixels, except in an image that the safety checker made
    /// black.
    fn finish(&self, generated: RgbImage, nsfw: bool) -> Result<RgbImage> {
        let whole = match self.region {
            Some(_) => compose::apply_overlay(&self.mask, &self.image, &generated, self.region)?,
            None => generated,
        };
        if nsfw || !self.keep_unmasked {
            return Ok(whole);
        }
        compose::keep_unmasked(&whole, &self.image, &self.mask)
    }
}

/// Returns 1 from a half up and 0 below (`VaeImageProcessor.binarize`).
fn binarize(mask: &Tensor) -> Result<Tensor> {
    Ok(mask.ge_number(0.5)?.f_to_kind(Kind::Float)?)
}
