//! `model_index.json`: which pipeline a folder is, and what its components are.

use std::path::Path;

use serde_json::{Map, Value};

use crate::weights::read_json;
use diffusion_core::config::PipelineClass;
use diffusion_core::{Error, Result};

/// The contents of `model_index.json`.
#[derive(Debug)]
pub struct ModelIndex {
    /// The pipeline.
    pub class: PipelineClass,
    components: Map<String, Value>,
}

impl ModelIndex {
    /// Reads the file of a model folder.
    ///
    /// # Errors
    /// `NotFound` without the file, `InvalidArgument` if it is no index, `Unsupported` for a pipeline
    /// that we do not serve.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("model_index.json");
        let components: Map<String, Value> = read_json(&path)?;
        let name = components
            .get("_class_name")
            .and_then(Value::as_str)
            .ok_or_else(|| Error::invalid_argument(format!("{}: has no _class_name", path.display())))?;
        let class = PipelineClass::from_name(name)
            .ok_or_else(|| Error::unsupported(format!("{}: this _class_name is not supported", path.display())))?;
        Ok(Self { class, components })
    }

    /// Checks that a component is of one of the classes that we can be.
    ///
    /// # Errors
    /// `NotFound` if the index lacks it, `Unsupported` for another class; both name the component.
    pub fn require(&self, component: &str, classes: &[&str]) -> Result<()> {
        match self.component_class(component) {
            Some(class) if classes.contains(&class) => Ok(()),
            Some(_) => Err(Error::unsupported(format!(
                "model_index.json: {component} must be {}",
                classes.join(" or ")
            ))),
            None => Err(Error::not_found(format!("model_index.json: has no {component}"))),
        }
    }

    /// Whether the folder has the component at all: its entry is not `[null, null]`.
    pub fn has(&self, component: &str) -> bool {
        self.component_class(component).is_some()
    }

    /// A whole number beside the components; `None` if there is none.
    ///
    /// # Errors
    /// `InvalidArgument` naming the key if it is not a whole number below 2^32.
    pub fn number(&self, key: &str) -> Result<Option<u32>> {
        match self.components.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value
                .as_u64()
                .and_then(|number| u32::try_from(number).ok())
                .map(Some)
                .ok_or_else(|| Error::invalid_argument(format!("model_index.json: {key} must be a number"))),
        }
    }

    /// The class in `["library", "Class"]`.
    fn component_class(&self, component: &str) -> Option<&str> {
        self.components.get(component)?.get(1)?.as_str()
    }
}
