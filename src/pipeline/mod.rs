//! The pipelines, each as prepare, step and finish.
//!
//! What diffusers does in one call is cut at the UNet, so that the engine can put the steps of
//! several requests into one call: `prepare` makes a job of a request, `step` moves jobs on by one
//! UNet call, `finish` turns a job's latents into pictures. The pipelines differ in where a job
//! starts and in what is done with its pictures; the steps between are the same for all.

mod components;
mod depth_map;
mod depth_to_image;
mod diffusion;
mod dpt_image_processor;
mod image_to_image;
mod inpaint;
mod job;
mod model_index;
mod prompt;
mod safety_check;
mod start;
mod text_to_image;
mod tiles;
mod upscale;

pub use crate::models::release_scratch;
pub use components::{Components, Place};
pub use depth_map::{depth_map, given_depth_map};
pub use diffusion::{DiffusionPipeline, Generated, Pieces};
pub use dpt_image_processor::DptImageProcessor;
pub use job::Job;
pub use model_index::ModelIndex;
pub use prompt::{MAX_CHUNKS, PromptEmbeds, PromptEncoder};
pub use safety_check::SafetyCheck;
