//! `StableDiffusionPipeline`.
//!
//! Source: diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion.py`.

use super::{PipelineSteps, Prepared, Unchanged};
use crate::pipelines::denoising_state::{DenoisingState, PrepareContext};
use crate::torch::numbers::NumberOperators;
use diffusion_core::Result;
use diffusion_request::Text2Img;

impl PipelineSteps for Text2Img {
    fn prepare(&self, mut context: PrepareContext<'_>) -> Result<Prepared> {
        let noise = context.noise(&context.latent_shape())?;
        let latents = noise.mul_number(context.scheduler.init_noise_sigma())?;
        Ok((DenoisingState::new(latents), Box::new(Unchanged)))
    }
}
