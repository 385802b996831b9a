//! Configuration as plain data: the compiled-in defaults and limits of each pipeline, and the parameters, completion and
//! validation of a model's `config.pbtxt`.

mod base;
mod model_config;
mod model_parameters;
mod pipeline_defaults;

pub use base::Base;
pub use model_config::{
    DEFAULT_MAX_BATCH_SIZE, OUTPUT_NAME, TensorSpec, complete_model_config, inputs_of, validate_model_config,
};
pub use model_parameters::{Dtype, ModelParameters, Numerics, Placement};
pub use pipeline_defaults::{Defaults, Format, Limits, PipelineClass, PipelineDefaults};
