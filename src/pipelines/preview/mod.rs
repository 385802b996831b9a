//! Previews: images of a job that has not taken all its steps.

mod latent_colors;

use tch::Tensor;

use crate::processors::vae::images;
use crate::schedulers::{Denoiser, SchedulerConfig};
use crate::torch::HostCopy;
use diffusion_core::Result;
use diffusion_image::RgbImage;
use diffusion_request::Preview;

pub use latent_colors::LatentColors;

/// What the previews of a job are made of.
pub struct PreviewSource {
    /// How latents become images.
    pub kind: Preview,
    denoiser: Denoiser,
    last: Option<Call>,
}

/// A call of the UNet, for all images of the job.
struct Call {
    timestep: f64,
    /// `[images, channels, height, width]`, as the UNet takes it.
    input: Tensor,
    /// The guided prediction, of the same shape.
    output: Tensor,
}

impl PreviewSource {
    /// Makes the source for a job with this scheduler.
    ///
    /// # Errors
    /// `InvalidArgument` for betas that make no schedule.
    pub fn new(kind: Preview, scheduler: &SchedulerConfig) -> Result<Self> {
        Ok(Self {
            kind,
            denoiser: scheduler.denoiser()?,
            last: None,
        })
    }

    /// Keeps the last call of the UNet. `input` and `output` are of one shape.
    pub fn keep(&mut self, timestep: f64, input: Tensor, output: &Tensor) {
        self.last = Some(Call {
            timestep,
            input,
            output: output.shallow_clone(),
        });
    }

    /// Returns the clean latents that the last call predicts; `None` before the first call.
    pub fn latents(&self) -> Result<Option<Tensor>> {
        let Some(call) = &self.last else {
            return Ok(None);
        };
        let latents = self
            .denoiser
            .pred_original_sample(call.timestep, &call.input, &call.output)?;
        Ok(Some(latents))
    }
}

/// The images of a preview, which a GPU may still compute.
pub struct PreviewImages(HostCopy);

impl PreviewImages {
    /// Takes bytes `[images, height, width, 3]` that are on their way to the host.
    pub fn new(bytes: HostCopy) -> Self {
        Self(bytes)
    }

    /// Waits for the images.
    ///
    /// # Errors
    /// `DeviceLost` if the GPU failed.
    pub fn wait(&self) -> Result<Vec<RgbImage>> {
        images(self.0.wait()?)
    }
}
