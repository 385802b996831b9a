//! Would the server load this folder? Asked of the server's own code.

use std::path::Path;

use clap::Args;
use diffusion_core::config::{Dtype, ModelParameters};
use diffusion_core::{Error, Result};
use diffusion_request::RequestValidator;
use serde_json::{Map, Value, json};
use triton_diffusion::pipelines::{Components, Place};

/// What goes into `config.pbtxt`.
#[derive(Args, Clone, Debug, Default)]
pub struct ParameterArguments {
    /// A parameter of config.pbtxt, such as scheduler=DDIMScheduler; may be given several times
    #[arg(long = "parameter", value_name = "KEY=VALUE")]
    pub parameters: Vec<String>,
}

impl ParameterArguments {
    /// Keys and values, sorted.
    ///
    /// # Errors
    /// `InvalidArgument` for one without `=`, or a key that is given twice.
    pub fn pairs(&self) -> Result<Map<String, Value>> {
        let mut pairs = Map::new();
        for parameter in &self.parameters {
            let (key, value) = parameter.split_once('=').ok_or_else(|| {
                Error::invalid_argument("--parameter takes KEY=VALUE, such as scheduler=DDIMScheduler")
            })?;
            if pairs.insert(key.to_owned(), value.into()).is_some() {
                return Err(Error::invalid_argument(format!("--parameter {key} is given twice")));
            }
        }
        Ok(pairs)
    }

    /// The parameters as the server reads them. An unknown key, which the server only warns of, is an error here.
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

/// A folder that the server would load.
pub struct Loadable {
    /// The scheduler that a request gets if it asks for none.
    pub scheduler: &'static str,
    /// What the server would log.
    pub warnings: Vec<String>,
}

/// Loads the folder as the server does and lets it go again. `dtype` is that of the weights, for which nothing need be
/// converted; what is checked does not depend on it.
///
/// # Errors
/// The server's.
pub fn check(folder: &Path, parameters: &ModelParameters, dtype: Dtype) -> Result<Loadable> {
    let parameters = ModelParameters {
        dtype,
        ..parameters.clone()
    };
    let (components, warnings) = Components::load(folder, &parameters, Place::Cpu)?;
    RequestValidator::new(components.model_info(), &parameters)?;
    Ok(Loadable {
        scheduler: components.scheduler_name(),
        warnings,
    })
}
