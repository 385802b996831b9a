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
mod job;
mod latent_tiles;
pub mod loading;
mod prompt_encoder;
mod safety_check;
mod stable_diffusion;

pub use depth_map::{depth_map, given_depth_map};
pub use diffusion_pipeline::{DiffusionPipeline, PipelineOutput, TileCounts};
pub use job::Job;
pub use loading::{Components, ModelIndex, Place};
pub use prompt_encoder::{MAX_CHUNKS, PromptEmbeds, PromptEncoder};
pub use safety_check::SafetyCheck;
