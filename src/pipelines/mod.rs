//! The pipelines, each as prepare, step and finish.
//!
//! What diffusers does in one call is cut at the UNet, so that the engine can put the steps of
//! several requests into one call: `prepare` makes a job of a request, `step` moves jobs on by one
//! UNet call, `finish` turns a job's latents into images. The pipelines differ in where a job
//! starts and in what is done with its images; the steps between are the same for all.

mod denoising_state;
mod depth_map;
mod diffusion_pipeline;
mod job;
mod latent_tiles;
pub mod loading;
mod prompt_encoder;
mod safety_check;
mod stable_diffusion;

use crate::models::layers::weight::free_upcast_buffers;
use crate::torch::{cuda, memory};
use diffusion_core::Result;

pub use crate::torch::Device;
pub use depth_map::{depth_map, given_depth_map};
pub use diffusion_pipeline::{DiffusionPipeline, Pieces, PipelineOutput};
pub use job::Job;
pub use loading::{Components, ModelIndex};
pub use prompt_encoder::{MAX_CHUNKS, PromptEmbeds, PromptEncoder};
pub use safety_check::SafetyCheck;

/// Frees the memory of a device that is cached and not in use: upcast buffers, libtorch's CUDA cache, and what the C
/// library keeps from the system.
///
/// # Errors
/// Those of CUDA, as `Internal`; the other caches are freed all the same.
pub fn free_cached_memory(device: impl Into<tch::Device>) -> Result<()> {
    free_upcast_buffers();
    memory::trim();
    cuda::empty_cache(device.into())
}
