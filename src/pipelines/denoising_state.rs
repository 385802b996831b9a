//! The state of the denoising loop, and what pipelines prepare it with.

use tch::{Kind, Tensor};

use super::image_size::ImageSize;
use super::latent_tiles::LatentTiles;
use super::loading::Components;
use crate::schedulers::Scheduler;
use crate::torch::numbers::NumberOperators;
use crate::torch::{Generator, Stream};
use diffusion_core::{Error, Result};
use diffusion_request::GenerateRequest;

/// The latents of a job and the further inputs of its UNet calls.
pub struct DenoisingState {
    /// The current latents, `[images, channels, height, width]`.
    pub latents: Tensor,
    /// Further channels of the UNet's input, `[images, channels, height, width]`.
    pub conditioning: Option<Tensor>,
    /// int64 `[1]`, for a UNet with classes.
    pub class_label: Option<Tensor>,
    /// The kept part of an inpainted image, blended into the latents after each step.
    pub unmasked: Option<UnmaskedLatents>,
    /// The tiles of a large image; each is a UNet call.
    pub tiles: Option<LatentTiles>,
    /// Whether the UNet computes one batch entry at a time, to save memory on large images.
    pub one_by_one: bool,
}

impl DenoisingState {
    /// Creates a state of latents alone.
    pub fn new(latents: Tensor) -> Self {
        Self {
            latents,
            conditioning: None,
            class_label: None,
            unmasked: None,
            tiles: None,
            one_by_one: false,
        }
    }
}

/// The image for the part that must not change, for a UNet without channels for a mask.
///
/// Source: the end of the loop in diffusers' `pipeline_stable_diffusion_inpaint.py`.
pub struct UnmaskedLatents {
    /// 1 in the repainted part, 0 elsewhere, `[images, 1, height, width]`.
    pub mask: Tensor,
    /// The image's latents, `[images, channels, height, width]`.
    pub image_latents: Tensor,
    /// The initial noise, of the same shape.
    pub noise: Tensor,
}

impl UnmaskedLatents {
    /// Replaces the kept part of `latents` by the image with the noise of the scheduler's current timestep, or without
    /// noise after the last step.
    pub fn blend(&self, latents: &Tensor, scheduler: &dyn Scheduler, last: bool) -> Result<Tensor> {
        let kept = if last {
            self.image_latents.shallow_clone()
        } else {
            scheduler.add_noise(&self.image_latents, &self.noise)?
        };
        let outside = self.mask.f_neg()?.add_number(1.0)?;
        Ok(outside.f_mul(&kept)?.f_add(&self.mask.f_mul(latents)?)?)
    }
}

/// What a pipeline prepares a job with.
pub struct PrepareContext<'a> {
    /// The components of the model.
    pub components: &'a Components,
    /// The request.
    pub request: &'a GenerateRequest,
    /// The number of images of the job.
    pub images: i64,
    /// The dtype of latents.
    pub kind: Kind,
    /// Pixels up to which an enlarged image is generated whole.
    pub max_chunk_pixels: u64,
    /// The job's scheduler, at its first step.
    pub scheduler: &'a mut dyn Scheduler,
    /// The job's generator, freshly seeded.
    pub generator: &'a mut Generator,
    /// The stream of the engine's thread.
    pub stream: &'a Stream,
}

impl PrepareContext<'_> {
    /// Draws standard normal noise of that shape on the CPU and copies it to the device.
    pub fn noise(&mut self, shape: &[i64]) -> Result<Tensor> {
        self.generator.randn_on_device(shape, self.kind)
    }

    /// Returns the size of what is generated.
    pub fn image_size(&self) -> ImageSize {
        ImageSize::new(self.components, self.request, self.max_chunk_pixels)
    }

    /// Returns the height and width of the latents.
    pub fn latent_size(&self) -> (i64, i64) {
        self.image_size().latents()
    }

    /// Returns the shape of the latents.
    pub fn latent_shape(&self) -> [i64; 4] {
        let (height, width) = self.latent_size();
        let channels = self.components.vae.config().latent_channels;
        [self.images, channels, height, width]
    }

    /// Skips the first steps for a `strength` below 1 (`get_timesteps` of diffusers'
    /// `pipeline_stable_diffusion_img2img.py`).
    ///
    /// # Errors
    /// InvalidArgument if no step is left.
    pub fn apply_strength(&mut self, strength: f64) -> Result<()> {
        let steps = self.request.num_inference_steps;
        let taken = ((steps as f64 * strength) as usize).min(steps);
        self.scheduler.set_begin_index((steps - taken) * self.scheduler.order());
        if self.scheduler.timesteps().is_empty() {
            return Err(Error::invalid_argument(format!(
                "gen_args: `strength` {strength} with {steps} steps results in no denoising step; increase either"
            )));
        }
        Ok(())
    }

    /// Copies a tensor to the device, in the dtype of latents.
    pub fn to_device(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(self.stream.to_device(tensor)?.f_to_kind(self.kind)?)
    }

    /// Encodes an image `[1, 3, height, width]` of -1 to 1: a sample of the VAE's distribution, scaled for the UNet,
    /// `[1, channels, height/f, width/f]`.
    pub fn encode(&mut self, image: &Tensor) -> Result<Tensor> {
        let vae = &self.components.vae;
        // Some models compute the VAE in float32.
        let image = self.to_device(image)?.f_to_kind(vae.kind())?;
        let moments = vae.encode(&image)?;
        let halves = moments.f_chunk(2, 1)?;
        let [mean, log_variance] = halves.as_slice() else {
            return Err(Error::internal("the VAE's moments are not two halves"));
        };
        // DiagonalGaussianDistribution of diffusers' `models/autoencoders/vae.py`.
        let std = log_variance.clamp_numbers(-30.0, 20.0)?.mul_number(0.5)?.f_exp()?;
        let noise = self.generator.randn_like(mean, moments.kind())?;
        let sample = mean.f_add(&std.f_mul(&noise)?)?.f_to_kind(self.kind)?;
        sample.mul_number(vae.config().scaling_factor)
    }

    /// Repeats the tensor of one image for each image of the job.
    pub fn repeat_per_image(&self, one: Tensor) -> Result<Tensor> {
        if self.images == 1 {
            return Ok(one);
        }
        Ok(one.f_repeat([self.images, 1, 1, 1])?)
    }
}
