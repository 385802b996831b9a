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

pub use depth_map::{depth_map, given_depth_map};
pub use diffusion_pipeline::{DiffusionPipeline, Pieces, PipelineOutput};
pub use job::Job;
pub use loading::{Components, ModelIndex, Place};
pub use prompt_encoder::{MAX_CHUNKS, PromptEmbeds, PromptEncoder};
pub use safety_check::SafetyCheck;
