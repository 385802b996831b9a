//! Configuration: the compiled-in defaults and limits of each pipeline, the parameters in a model's `config.pbtxt`, and
//! the completion and validation of the model configuration. Plain data, no Triton types.

mod model_config;
mod model_parameters;
mod pipeline_defaults;

pub use model_config::{
    DEFAULT_MAX_BATCH_SIZE, OUTPUT_NAME, TensorSpec, complete_model_config, inputs_of, validate_model_config,
};
pub use model_parameters::{Dtype, ModelParameters, Numerics};
pub use pipeline_defaults::{Defaults, Format, Limits, PipelineClass, PipelineDefaults};
