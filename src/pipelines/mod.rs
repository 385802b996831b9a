//! The pipelines, each as prepare, step and finish.
//!
//! One call of a diffusers pipeline is split at the UNet, which lets the engine batch the steps of several requests:
//! `prepare` creates a job from a request, `step` advances jobs by one UNet call, `finish` decodes the latents of a job.
//! Pipelines differ in `prepare` and in the postprocessing of images (`stable_diffusion`); the steps are the same for all.
//!
//! Every function that creates tensors can fail with `OutOfMemory`; `# Errors` sections list the other errors.

mod denoising_state;
mod depth_map;
mod diffusion_pipeline;
mod image_decoder;
mod image_size;
mod job;
mod large_images;
mod latent_tiles;
pub mod loading;
mod memory_need;
mod preview;
mod prompt_encoder;
mod prompt_encoder_xl;
mod safety_check;
mod stable_diffusion;
mod timings;
mod unet_calls;

use crate::models::layers::free_upcast_buffers;
use crate::torch::{cpu_allocator, cuda, memory};
use crate::weights;
use diffusion_core::Result;

pub use crate::adapters::{EmbeddingPool, JobAdapters, LoraPool, PoolUsage};
pub use crate::torch::cuda::DeviceMemory;
pub use crate::torch::initialize as initialize_libtorch;
pub use crate::torch::{Device, Stream};
pub use depth_map::{depth_map, given_depth_map};
pub use diffusion_pipeline::{DiffusionPipeline, PipelineOutput};
pub use job::Job;
pub use latent_tiles::TileCounts;
pub use loading::{Components, ModelIndex};
pub use memory_need::PipelineRequest;
pub use preview::PreviewImages;
pub use prompt_encoder::{MAX_CHUNKS, PromptEmbeds, PromptEncoder};
pub use safety_check::SafetyCheck;
pub use timings::Timings;

/// Returns the memory of a GPU; `None` for the CPU.
///
/// # Errors
/// Errors of CUDA, as `Internal`.
pub fn device_memory(device: Device) -> Result<Option<DeviceMemory>> {
    match device {
        Device::Cpu => Ok(None),
        Device::Cuda(index) => cuda::device_memory(index as usize).map(Some),
    }
}

/// Host memory that jobs leave free, or an eighth of what there is if that is less.
const HOST_RESERVE: u64 = 128 << 20;

/// Returns the memory of a device that the jobs of all engines may use in all; `None` if it is unknown. Frees cached memory
/// if that is less than `needed`.
///
/// What jobs already use counts as available. The weights do not, nor what other processes use.
pub fn memory_for_jobs(device: Device, needed: u64) -> Option<u64> {
    match device {
        Device::Cpu => {
            let available = || {
                let free = memory::physical()?;
                Some(free - HOST_RESERVE.min(free / 8) + cpu_allocator::counted_bytes())
            };
            if available()? < needed {
                // A failure changes nothing: memory is short either way.
                let _ = free_cached_memory(device);
            }
            available()
        }
        Device::Cuda(index) => {
            let memory = cuda::device_memory(index as usize).ok()?;
            let of_libtorch = memory.reserved.saturating_sub(weights::resident_bytes(device));
            Some(memory.free.saturating_add(of_libtorch))
        }
    }
}

/// Frees the memory of a device that is cached and not in use: upcast buffers, libtorch's CUDA cache, and what the C
/// library keeps from the system.
///
/// # Errors
/// Those of CUDA, as `Internal`; the other caches are freed all the same.
pub fn free_cached_memory(device: impl Into<tch::Device>) -> Result<()> {
    free_upcast_buffers();
    cpu_allocator::trim();
    memory::trim();
    cuda::empty_cache(device.into())
}
