//! From a model folder to the loaded components of a pipeline.

mod components;
mod model_index;

pub use components::Components;
pub use model_index::ModelIndex;
