//! `StableDiffusionPipeline`.
//!
//! Source: diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion.py`.

use crate::pipelines::denoising_state::{Setup, Start};
use diffusion_core::Result;

/// Noise, as strong as the scheduler starts with.
///
/// # Errors
/// Out of memory.
pub fn start(mut setup: Setup<'_>) -> Result<Start> {
    let noise = setup.noise(&setup.latent_shape())?;
    Ok(Start::from(noise.f_mul_scalar(setup.scheduler.init_noise_sigma())?))
}
