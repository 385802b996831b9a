//! From a model folder to the loaded components of a pipeline.
//!
//! Loading has two phases, with one file for each component. `open` checks the configuration and opens the weight
//! files; after all weights were loaded together, `build` makes the model from them.

mod checkpoint_digest;
mod checkpoint_files;
mod components;
mod depth;
mod model_folder;
mod model_index;
mod safety_checker;
mod scheduler;
mod self_test;
mod text_encoder;
mod unet;
mod vae;
mod vae_tiny;

pub use checkpoint_digest::checkpoint_digest;
pub use checkpoint_files::{COMPONENTS, ComponentSpec, known_components, served_files};
pub use components::Components;
pub use depth::DepthEstimator;
pub use model_index::ModelIndex;
