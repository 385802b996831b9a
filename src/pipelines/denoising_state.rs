//! Where a job starts: its latents, and what the UNet is shown beside them.

use tch::{Kind, Tensor};

use super::latent_tiles::Tiles;
use super::loading::Components;
use crate::schedulers::Scheduler;
use crate::torch::Generator;
use diffusion_core::{Error, Result};
use diffusion_request::generate_request::GenerateRequest;

/// What a pipeline's own part of `prepare` comes to.
pub struct Start {
    /// `[images, channels, height, width]`.
    pub latents: Tensor,
    /// Shown to the UNet as further channels, `[images, channels, height, width]`.
    pub conditioning: Option<Tensor>,
    /// int64 `[1]`, for a UNet with classes.
    pub class_label: Option<Tensor>,
    /// What is put back after each step, where only a part is repainted.
    pub keep: Option<Keep>,
    /// The pieces of the latents that the UNet is shown one by one.
    pub tiles: Option<Tiles>,
    /// Whether the UNet is shown one row at a time, for images so large that a row is enough for its memory.
    pub row_by_row: bool,
}

impl Start {
    /// A start from latents alone.
    pub fn from(latents: Tensor) -> Self {
        Self {
            latents,
            conditioning: None,
            class_label: None,
            keep: None,
            tiles: None,
            row_by_row: false,
        }
    }
}

/// The part of an image that a UNet without channels for a mask must not change.
///
/// Source: the end of the loop in diffusers' `pipeline_stable_diffusion_inpaint.py`.
pub struct Keep {
    /// 1 where the image is repainted, `[images, 1, height, width]`.
    pub mask: Tensor,
    /// The image's latents, `[images, channels, height, width]`.
    pub image_latents: Tensor,
    /// The noise that the job started from, of the same shape.
    pub noise: Tensor,
}

impl Keep {
    /// `latents` with the kept part as noisy as the scheduler's present timestep has it; clean after the
    /// last step.
    ///
    /// # Errors
    /// Out of memory.
    pub fn put_back(&self, latents: &Tensor, scheduler: &dyn Scheduler, last: bool) -> Result<Tensor> {
        let kept = if last {
            self.image_latents.shallow_clone()
        } else {
            scheduler.add_noise(&self.image_latents, &self.noise)?
        };
        let outside = self.mask.f_neg()?.f_add_scalar(1.0)?;
        Ok(outside.f_mul(&kept)?.f_add(&self.mask.f_mul(latents)?)?)
    }
}

/// What a pipeline's own part of `prepare` works with.
pub struct Setup<'a> {
    /// The model's parts.
    pub components: &'a Components,
    /// What is asked for.
    pub request: &'a GenerateRequest,
    /// Images of the job.
    pub images: i64,
    /// The dtype of latents.
    pub kind: Kind,
    /// The job's scheduler, at its start.
    pub scheduler: &'a mut dyn Scheduler,
    /// The job's generator, from which nothing has been drawn.
    pub generator: &'a mut Generator,
}

impl Setup<'_> {
    /// Standard normal noise of that shape, drawn on the CPU and brought to the device.
    ///
    /// # Errors
    /// Out of memory.
    pub fn noise(&mut self, shape: &[i64]) -> Result<Tensor> {
        Ok(self
            .generator
            .randn(shape, self.kind)?
            .f_to_device(self.components.device)?)
    }

    /// Height and width of the latents of what is generated.
    pub fn latent_size(&self) -> (i64, i64) {
        let factor = self.components.vae.config().scale_factor();
        (
            i64::from(self.request.height) / factor,
            i64::from(self.request.width) / factor,
        )
    }

    /// The shape of the latents.
    pub fn latent_shape(&self) -> [i64; 4] {
        let (height, width) = self.latent_size();
        let channels = self.components.vae.config().latent_channels;
        [self.images, channels, height, width]
    }

    /// Leaves out the steps that a `strength` below 1 does not take (`get_timesteps` of diffusers'
    /// `pipeline_stable_diffusion_img2img.py`).
    ///
    /// # Errors
    /// InvalidArgument if no step is left.
    pub fn begin(&mut self, strength: f64) -> Result<()> {
        let steps = self.request.num_inference_steps;
        let taken = ((steps as f64 * strength) as usize).min(steps);
        self.scheduler.set_begin_index((steps - taken) * self.scheduler.order());
        if self.scheduler.timesteps().is_empty() {
            return Err(Error::invalid_argument(format!(
                "gen_args: `strength` {strength} of {steps} steps leaves no step to take"
            )));
        }
        Ok(())
    }

    /// A tensor on the device, in the dtype of latents.
    ///
    /// # Errors
    /// Out of memory.
    pub fn place(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.f_to_device(self.components.device)?.f_to_kind(self.kind)?)
    }

    /// Latents of an image `[1, 3, height, width]` of -1 to 1, drawn from the distribution that the VAE
    /// gives and scaled for the UNet: `[1, channels, height/f, width/f]`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn encode(&mut self, image: &Tensor) -> Result<Tensor> {
        let image = self.place(image)?;
        let vae = &self.components.vae;
        let moments = vae.encode(&image)?;
        let parts = moments.f_chunk(2, 1)?;
        let [mean, log_variance] = parts.as_slice() else {
            return Err(Error::internal("the VAE's moments are not two halves"));
        };
        // DiagonalGaussianDistribution of diffusers' `models/autoencoders/vae.py`.
        let std = log_variance.f_clamp(-30.0, 20.0)?.f_mul_scalar(0.5)?.f_exp()?;
        let noise = self
            .generator
            .randn(&mean.size(), moments.kind())?
            .f_to_device(moments.device())?;
        let sample = mean.f_add(&std.f_mul(&noise)?)?;
        Ok(sample.f_mul_scalar(vae.config().scaling_factor)?)
    }

    /// One image's tensor for each of the job's images, if there are more than one.
    ///
    /// # Errors
    /// Out of memory.
    pub fn for_each_image(&self, one: Tensor) -> Result<Tensor> {
        if self.images == 1 {
            return Ok(one);
        }
        Ok(one.f_repeat([self.images, 1, 1, 1])?)
    }
}
