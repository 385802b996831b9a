//! Checks with the server's own code whether the server would load a folder.

use std::path::Path;

use clap::Args;
use diffusion_core::config::{Dtype, ModelParameters};
use diffusion_core::{Error, Result};
use diffusion_request::RequestValidator;
use serde_json::{Map, Value, json};
use triton_diffusion::pipelines::{Components, Device};

/// The parameters of `config.pbtxt`.
#[derive(Args, Clone, Debug, Default)]
pub struct ParameterArguments {
    /// A parameter of config.pbtxt, such as scheduler=DDIMScheduler; may be given several times
    #[arg(long = "parameter", value_name = "KEY=VALUE")]
    pub parameters: Vec<String>,
}

impl ParameterArguments {
    /// Returns the keys and values, sorted.
    ///
    /// # Errors
    /// `InvalidArgument` for a parameter without `=`, or a duplicate key.
    pub fn pairs(&self) -> Result<Map<String, Value>> {
        let mut pairs = Map::new();
        for parameter in &self.parameters {
            let (key, value) = parameter.split_once('=').ok_or_else(|| {
                Error::invalid_argument("--parameter: expected KEY=VALUE, such as scheduler=DDIMScheduler")
            })?;
            if pairs.insert(key.to_owned(), value.into()).is_some() {
                return Err(Error::invalid_argument(format!("--parameter {key} is given twice")));
            }
        }
        Ok(pairs)
    }

    /// Parses the parameters like the server. An unknown key is an error here; the server only warns.
    ///
    /// # Errors
    /// `InvalidArgument` that names the key.
    pub fn read(&self) -> Result<ModelParameters> {
        let entries: Map<String, Value> = self
            .pairs()?
            .into_iter()
            .map(|(key, value)| (key, json!({ "string_value": value })))
            .collect();
        let (parameters, warnings) = ModelParameters::parse(&Value::Object(entries))?;
        match warnings.into_iter().next() {
            Some(warning) => Err(Error::invalid_argument(warning)),
            None => Ok(parameters),
        }
    }
}

/// A folder that the server loads.
pub struct CheckedFolder {
    /// The default scheduler of a request.
    pub scheduler: &'static str,
    /// The warnings that the server would log.
    pub warnings: Vec<String>,
}

/// Loads the folder, and the LoRA of a model, like the server and drops the model. `dtype` is that of the weights, so nothing is converted; the
/// checks do not depend on it.
///
/// # Errors
/// The server's error.
pub fn check(folder: &Path, lora: Option<&Path>, parameters: &ModelParameters, dtype: Dtype) -> Result<CheckedFolder> {
    let parameters = ModelParameters {
        dtype,
        ..parameters.clone()
    };
    let (mut components, warnings) = Components::load(folder, &parameters, Device::Cpu)?;
    if let Some(lora) = lora {
        components = components.with_lora(lora, parameters.lora_scale, None)?;
    }
    RequestValidator::new(components.model_info(), &parameters)?;
    Ok(CheckedFolder {
        scheduler: components.scheduler_name(),
        warnings,
    })
}
