//! The context for initializing a model.

use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use serde_json::Value;

use crate::config::{self, CONFIG_VERSION, Message};
use crate::error::{Error, check};
use crate::sys;

/// The context of [`Model::initialize`](crate::Model::initialize).
#[derive(Debug)]
pub struct ModelContext<'a> {
    raw: &'a NonNull<sys::TRITONBACKEND_Model>,
    name: String,
    version: u64,
    repository: PathBuf,
}

impl<'a> ModelContext<'a> {
    /// # Safety
    ///
    /// `raw` is the live model that Triton is initializing.
    pub(crate) unsafe fn new(raw: &'a NonNull<sys::TRITONBACKEND_Model>) -> Result<Self, Error> {
        let mut kind = sys::TRITONBACKEND_ARTIFACT_FILESYSTEM;
        let mut location = std::ptr::null();
        // SAFETY: the handle is live and the results point to locals; the location lives as
        // long as the model and is copied.
        unsafe {
            check(sys::TRITONBACKEND_ModelRepository(
                raw.as_ptr(),
                &mut kind,
                &mut location,
            ))?;
            let (name, version) = identity(*raw)?;
            Ok(Self {
                raw,
                name,
                version,
                repository: config::artifact_path(kind, location)?,
            })
        }
    }

    /// Returns the model's name (`TRITONBACKEND_ModelName`). On a multi-model endpoint, this is the
    /// name of an archive and does not describe the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the version that is being loaded (`TRITONBACKEND_ModelVersion`).
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Returns the model's folder, with `config.pbtxt` and a folder for each version
    /// (`TRITONBACKEND_ModelRepository`).
    pub fn repository(&self) -> &Path {
        &self.repository
    }

    /// Returns the folder of the version that is being loaded.
    pub fn version_path(&self) -> PathBuf {
        self.repository.join(self.version.to_string())
    }

    /// Returns the model configuration (`TRITONBACKEND_ModelConfig`).
    ///
    /// # Errors
    ///
    /// Triton cannot return the configuration as JSON.
    pub fn config(&self) -> Result<Value, Error> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the model is live for 'a; the caller owns the returned message.
        let message = unsafe {
            check(sys::TRITONBACKEND_ModelConfig(
                self.raw.as_ptr(),
                CONFIG_VERSION,
                &mut raw,
            ))
            .and_then(|()| Message::from_raw(raw))
        };
        message
            .and_then(|message| message.json())
            .map_err(|error| error.context(format_args!("configuration of model '{}'", self.name)))
    }

    /// Returns the `parameters` of the configuration in the form of [`config::parameters`].
    ///
    /// # Errors
    ///
    /// Those of [`ModelContext::config`] and [`config::parameters`].
    pub fn parameters(&self) -> Result<Value, Error> {
        config::parameters(&self.config()?).map_err(|error| error.context(format_args!("model '{}'", self.name)))
    }

    /// Returns whether the backend should complete the configuration
    /// (`TRITONBACKEND_ModelAutoCompleteConfig`).
    ///
    /// # Errors
    ///
    /// Triton cannot return the setting.
    pub fn should_auto_complete(&self) -> Result<bool, Error> {
        let mut wanted = false;
        // SAFETY: the model is live for 'a and the result points to a local.
        unsafe {
            check(sys::TRITONBACKEND_ModelAutoCompleteConfig(
                self.raw.as_ptr(),
                &mut wanted,
            ))?;
        }
        Ok(wanted)
    }

    /// Passes a completed configuration to Triton (`TRITONBACKEND_ModelSetConfig`). Triton uses its
    /// inputs, outputs, `max_batch_size` and, if none was set, the scheduling choice, and may add to
    /// them: read [`ModelContext::config`] again afterwards.
    ///
    /// # Errors
    ///
    /// Triton rejects the configuration.
    pub fn set_config(&mut self, config: &Value) -> Result<(), Error> {
        let message = Message::from_json(config)?;
        // SAFETY: the model is live for 'a; the message remains owned here and outlives the call.
        unsafe {
            check(sys::TRITONBACKEND_ModelSetConfig(
                self.raw.as_ptr(),
                CONFIG_VERSION,
                message.as_ptr(),
            ))
        }
        .map_err(|error| error.context(format_args!("model '{}'", self.name)))
    }
}

/// Returns the name and the version of a model.
///
/// # Safety
///
/// `raw` is live.
pub(crate) unsafe fn identity(raw: NonNull<sys::TRITONBACKEND_Model>) -> Result<(String, u64), Error> {
    let mut version = 0;
    // SAFETY: the handle is live, the result points to a local, the name lives with the model.
    unsafe {
        check(sys::TRITONBACKEND_ModelVersion(raw.as_ptr(), &mut version))?;
        let name = config::copy_string(|out| sys::TRITONBACKEND_ModelName(raw.as_ptr(), out))?;
        Ok((name, version))
    }
}
