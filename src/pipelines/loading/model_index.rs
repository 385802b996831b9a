//! `model_index.json`: which pipeline a folder is, and what its components are.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::weights::read_json;
use diffusion_core::config::PipelineClass;
use diffusion_core::{Error, Result};

/// The contents of `model_index.json`.
#[derive(Debug)]
pub struct ModelIndex {
    path: PathBuf,
    entries: Map<String, Value>,
}

impl ModelIndex {
    /// The name of the file.
    pub const FILE: &str = "model_index.json";

    /// Reads the file of a model folder.
    ///
    /// # Errors
    /// `NotFound` without the file, `InvalidArgument` if it is not a JSON object.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(Self::FILE);
        let entries = read_json(&path)?;
        Ok(Self { path, entries })
    }

    /// Returns `_class_name`, supported or not.
    pub fn class_name(&self) -> Option<&str> {
        self.entries.get("_class_name")?.as_str()
    }

    /// Returns the pipeline of the folder.
    ///
    /// # Errors
    /// `InvalidArgument` without `_class_name`, `Unsupported` for a pipeline that is not served.
    pub fn pipeline_class(&self) -> Result<PipelineClass> {
        let path = self.path.display();
        let name = self
            .class_name()
            .ok_or_else(|| Error::invalid_argument(format!("{path}: has no _class_name")))?;
        PipelineClass::from_name(name)
            .ok_or_else(|| Error::unsupported(format!("{path}: this _class_name is not supported")))
    }

    /// Returns the library and the class of a component; `None` if the folder does not have the component (its entry is
    /// missing or `[null, null]`).
    pub fn component(&self, name: &str) -> Option<(&str, &str)> {
        let entry = self.entries.get(name)?;
        let class = entry.get(1)?.as_str()?;
        Some((entry.get(0).and_then(Value::as_str).unwrap_or_default(), class))
    }

    /// Checks that a component has one of the supported classes.
    ///
    /// # Errors
    /// `NotFound` if the index lacks the component, `Unsupported` for another class; both name the component.
    pub fn require(&self, component: &str, classes: &[&str]) -> Result<()> {
        match self.component(component) {
            Some((_, class)) if classes.contains(&class) => Ok(()),
            Some(_) => Err(Error::unsupported(format!(
                "model_index.json: {component} must be {}",
                classes.join(" or ")
            ))),
            None => Err(Error::not_found(format!("model_index.json: has no {component}"))),
        }
    }

    /// Returns a switch of the index; `default` if there is none.
    ///
    /// # Errors
    /// `InvalidArgument` that names the key if the value is not true or false.
    pub fn switch(&self, key: &str, default: bool) -> Result<bool> {
        match self.entries.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| Error::invalid_argument(format!("model_index.json: {key} must be true or false"))),
        }
    }

    /// Returns a whole number of the index; `None` if there is none.
    ///
    /// # Errors
    /// `InvalidArgument` that names the key if the value is not a whole number below 2^32.
    pub fn number(&self, key: &str) -> Result<Option<u32>> {
        match self.entries.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value
                .as_u64()
                .and_then(|number| u32::try_from(number).ok())
                .map(Some)
                .ok_or_else(|| Error::invalid_argument(format!("model_index.json: {key} must be a number"))),
        }
    }
}
