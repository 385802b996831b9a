//! `StableDiffusionInpaintPipeline`, with a UNet that sees the mask and one that does not.
//!
//! Source: diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion_inpaint.py` and `image_processor.py`.

use tch::{Kind, Tensor};

use crate::pipelines::denoising_state::{Keep, Setup, Start};
use crate::processors::vae::{mask_tensor, tensor};
use diffusion_core::{Context, Result};
use diffusion_image::RgbImage;
use diffusion_image::compose::{self, Region};
use diffusion_image::mask::Mask;
use diffusion_image::resize::{self, Filter};
use diffusion_request::generate_request::Source;

/// The image inputs and how they are used.
pub struct Inpaint<'a> {
    /// The image, of any size.
    pub image: &'a RgbImage,
    /// White is repainted; of any size.
    pub mask_image: &'a Mask,
    /// How far the repainted part is changed.
    pub strength: f64,
    /// Margin around the masked part.
    pub padding_mask_crop: Option<u32>,
    /// Whether the kept pixels are copied.
    pub keep_unmasked: bool,
}

impl<'a> Inpaint<'a> {
    /// The inputs of a request to inpaint; `None` for any other.
    pub fn of(source: &'a Source) -> Option<Self> {
        match source {
            Source::Inpaint {
                image,
                mask_image,
                strength,
                padding_mask_crop,
                keep_unmasked,
            } => Some(Self {
                image,
                mask_image,
                strength: *strength,
                padding_mask_crop: *padding_mask_crop,
                keep_unmasked: *keep_unmasked,
            }),
            _ => None,
        }
    }

    /// The part of the image that is worked on, if not all of it.
    fn region(&self, height: u32, width: u32) -> Result<Option<Region>> {
        self.padding_mask_crop
            .map(|pad| compose::crop_region(self.mask_image, width, height, pad))
            .transpose()
            .context(|| "input `mask_image`")
    }

    /// The image as the pipeline sees it, `height` times `width`.
    fn image(&self, region: Option<Region>, height: u32, width: u32) -> Result<RgbImage> {
        match region {
            Some(region) => compose::resize_and_fill(&compose::crop(self.image, region)?, width, height),
            None => resize::rgb(self.image, width, height, Filter::Lanczos),
        }
    }

    /// The mask as the pipeline sees it, `height` times `width`, not yet black and white.
    fn mask(&self, region: Option<Region>, height: u32, width: u32) -> Result<Mask> {
        match region {
            Some(region) => {
                let part = compose::crop_mask(self.mask_image, region)?;
                compose::resize_and_fill_mask(&part, width, height)
            }
            None => resize::mask(self.mask_image, width, height, Filter::Lanczos),
        }
    }

    /// The job's start.
    ///
    /// # Errors
    /// InvalidArgument if `strength` leaves no step; out of memory.
    pub fn start(&self, mut setup: Setup<'_>) -> Result<Start> {
        let (height, width) = (setup.request.height, setup.request.width);
        let from_noise = self.strength == 1.0;
        let unet_channels = setup.components.unet.config().in_channels;
        let sees_mask = unet_channels != setup.components.vae.config().latent_channels;

        let region = self.region(height, width)?;

        setup.begin(self.strength)?;
        let image = tensor(&self.image(region, height, width)?)?;
        let image_latents = if from_noise && sees_mask {
            None
        } else {
            let latents = setup.encode(&image)?;
            // `repeat` lays the copy out anew, even if it is the only one.
            Some(latents.f_repeat([setup.images, 1, 1, 1])?)
        };
        let noise = setup.noise(&setup.latent_shape())?;
        let latents = match &image_latents {
            Some(latents) if !from_noise => setup.scheduler.add_noise(latents, &noise)?,
            _ => noise.f_mul_scalar(setup.scheduler.init_noise_sigma())?,
        };

        let mask = binarize(&mask_tensor(&self.mask(region, height, width)?)?)?;
        let (latent_height, latent_width) = setup.latent_size();
        let small = mask.f_upsample_nearest2d([latent_height, latent_width], None, None)?;
        let small = setup.for_each_image(setup.place(&small)?)?;
        let mut start = Start::from(latents);
        if sees_mask {
            let masked = image.f_mul(&mask.f_lt(0.5)?)?;
            let masked_latents = setup.encode(&masked)?;
            let masked_latents = setup.for_each_image(masked_latents)?;
            start.conditioning = Some(Tensor::f_cat(&[small, masked_latents], 1)?);
        } else {
            // diffusers encodes the masked image here too and leaves it unused; what it draws for that must be
            // drawn, since a sampler may draw after it.
            let shape = setup.latent_shape();
            let _unused = setup.noise(&[1, shape[1], shape[2], shape[3]])?;
            start.keep = image_latents.map(|image_latents| Keep {
                mask: small,
                image_latents,
                noise,
            });
        }
        Ok(start)
    }

    /// The generated image as the request wants it back: in its place, and with the kept pixels as they were, unless
    /// the safety checker made it black (`flagged`).
    ///
    /// # Errors
    /// Out of memory.
    pub fn finish(&self, generated: RgbImage, flagged: bool) -> Result<RgbImage> {
        let (height, width) = (generated.height(), generated.width());
        let region = self.region(height, width)?;
        let whole = match region {
            Some(_) => compose::apply_overlay(self.mask_image, self.image, &generated, region)?,
            None => generated,
        };
        if flagged || !self.keep_unmasked {
            return Ok(whole);
        }
        if region.is_some() {
            return compose::keep_unmasked(&whole, self.image, self.mask_image);
        }
        let image = self.image(None, height, width)?;
        compose::keep_unmasked(&whole, &image, &self.mask(None, height, width)?)
    }
}

/// 1 from a half up, 0 below (`VaeImageProcessor.binarize`).
fn binarize(mask: &Tensor) -> Result<Tensor> {
    Ok(mask.f_ge(0.5)?.f_to_kind(Kind::Float)?)
}
