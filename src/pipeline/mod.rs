//! The pipelines, each as prepare, step and finish.
//!
//! What diffusers does in one call is cut at the UNet, so that the engine can put the steps of
//! several requests into one call: `prepare` makes a job of a request, `step` moves jobs on by one
//! UNet call, `finish` turns a job's latents into pictures.

mod components;
mod model_index;
mod text_to_image;

pub use components::{Components, Place};
pub use model_index::ModelIndex;
pub use text_to_image::{Generated, Job, StableDiffusionPipeline};
