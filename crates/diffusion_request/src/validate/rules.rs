//! One of the pipelines that a model folder serves.

use crate::gen_args::GenArgs;
use diffusion_core::Result;
use diffusion_core::config::{Defaults, Limits, ModelParameters, PipelineClass, PipelineDefaults};

/// The defaults and limits of one pipeline that a model folder serves.
#[derive(Debug, Clone)]
pub struct PipelineRules {
    of_class: PipelineDefaults,
    /// The keys of the model's `default_gen_args` that the pipeline supports.
    pub model_args: GenArgs,
}

impl PipelineRules {
    /// Combines the compiled-in rules of a class with a model's parameters.
    ///
    /// # Errors
    /// Internal if there are no rules for the class.
    pub fn new(class: PipelineClass, parameters: &ModelParameters, default_gen_args: &GenArgs) -> Result<Self> {
        let mut of_class = PipelineDefaults::of(class)?;
        of_class.limits = of_class.limits.with_parameters(parameters);
        Ok(Self {
            of_class,
            model_args: default_gen_args.for_pipeline(class),
        })
    }

    /// Returns the pipeline class.
    pub fn class(&self) -> PipelineClass {
        self.of_class.pipeline
    }

    /// Returns the arguments of a request that gives none.
    pub fn defaults(&self) -> &Defaults {
        &self.of_class.defaults
    }

    /// Returns what no request may exceed.
    pub fn limits(&self) -> &Limits {
        &self.of_class.limits
    }
}
