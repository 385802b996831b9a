//! The three traits that make a backend, and what the first of them is shown.

use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

use serde_json::Value;

use crate::config;
use crate::error::{Error, check};
use crate::instance::InstanceContext;
use crate::model::ModelContext;
use crate::request::RequestBatch;
use crate::{sys, text};

/// What a backend library holds once for all its models, from `TRITONBACKEND_Initialize` to
/// `TRITONBACKEND_Finalize`, where the last [`Arc`] to it is normally dropped.
pub trait Backend: Sized + Send + Sync + 'static {
    /// The backend's models.
    type Model: Model<Backend = Self>;

    /// Whether Triton may initialize instances of one model at the same time
    /// (`TRITONBACKEND_GetBackendAttribute`). Say so only if [`Instance::initialize`] may run on several
    /// threads at once, for one model and for several.
    const PARALLEL_INSTANCE_LOADING: bool = false;

    /// `TRITONBACKEND_Initialize`. The API version has been checked already.
    ///
    /// # Errors
    ///
    /// Fails the load of the model that needed the backend.
    fn initialize(context: &BackendContext<'_>) -> Result<Self, Error>;
}

/// A loaded model, from `TRITONBACKEND_ModelInitialize` to `TRITONBACKEND_ModelFinalize`.
pub trait Model: Sized + Send + Sync + 'static {
    /// The backend it belongs to.
    type Backend: Backend<Model = Self>;
    /// Its instances.
    type Instance: Instance<Model = Self>;

    /// `TRITONBACKEND_ModelInitialize`: read, complete and check the configuration.
    ///
    /// # Errors
    ///
    /// Fails the load of the model with the error's words.
    fn initialize(backend: &Arc<Self::Backend>, context: &mut ModelContext<'_>) -> Result<Self, Error>;
}

/// One instance of a model, from `TRITONBACKEND_ModelInstanceInitialize` to
/// `TRITONBACKEND_ModelInstanceFinalize`, where it is dropped.
///
/// Its drop must end the threads that it started and finish the [`Slot`](crate::Slot)s that
/// they hold: Triton may free the instance once the drop has returned.
pub trait Instance: Sized + Send + 'static {
    /// The model it belongs to.
    type Model: Model<Instance = Self>;

    /// `TRITONBACKEND_ModelInstanceInitialize`. Runs on the thread that loads, not on the one
    /// that executes.
    ///
    /// # Errors
    ///
    /// Fails the load of the model with the error's words.
    fn initialize(model: &Arc<Self::Model>, context: &InstanceContext<'_>) -> Result<Self, Error>;

    /// `TRITONBACKEND_ModelInstanceExecute`: [accept](RequestBatch::accept) the batch and answer
    /// its slots, here or later on another thread. Never called twice at once for one instance.
    /// Returning says that the instance can take more work.
    ///
    /// A panic here poisons the instance.
    ///
    /// # Errors
    ///
    /// Before the batch is accepted, Triton answers all its requests with the error. After
    /// that each slot has its own answer, and the error is only logged.
    fn execute(&mut self, batch: RequestBatch<'_>) -> Result<(), Error>;
}

/// The backend as [`Backend::initialize`] sees it.
#[derive(Debug)]
pub struct BackendContext<'a> {
    raw: &'a NonNull<sys::TRITONBACKEND_Backend>,
    name: String,
    location: PathBuf,
}

impl<'a> BackendContext<'a> {
    /// # Safety
    ///
    /// `raw` is the live backend that Triton is initializing.
    pub(crate) unsafe fn new(raw: &'a NonNull<sys::TRITONBACKEND_Backend>) -> Result<Self, Error> {
        let mut name = std::ptr::null();
        let mut kind = sys::TRITONBACKEND_ARTIFACT_FILESYSTEM;
        let mut location = std::ptr::null();
        // SAFETY: the handle is live and the results point to locals; the strings live as long
        // as the backend and are copied.
        unsafe {
            check(sys::TRITONBACKEND_BackendName(raw.as_ptr(), &mut name))?;
            check(sys::TRITONBACKEND_BackendArtifacts(
                raw.as_ptr(),
                &mut kind,
                &mut location,
            ))?;
            Ok(Self {
                raw,
                name: text::from_c(name).unwrap_or_default().into_owned(),
                location: config::artifact_path(kind, location)?,
            })
        }
    }

    /// The backend's name (`TRITONBACKEND_BackendName`).
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder that the library was loaded from (`TRITONBACKEND_BackendArtifacts`).
    pub fn location(&self) -> &Path {
        &self.location
    }

    /// The server's `--backend-config` settings (`TRITONBACKEND_BackendConfig`), an object with
    /// the key `cmdline`.
    ///
    /// # Errors
    ///
    /// If Triton has none to give or it is not JSON.
    pub fn config(&self) -> Result<Value, Error> {
        let mut message = std::ptr::null_mut();
        // SAFETY: the backend is live for 'a. The message stays Triton's, hence only a view.
        unsafe {
            check(sys::TRITONBACKEND_BackendConfig(self.raw.as_ptr(), &mut message))?;
            config::read_json(message)
        }
        .map_err(|error| error.context("configuration of the backend"))
    }
}
