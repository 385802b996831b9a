//! The three traits of a backend, and the context for initializing it.

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

/// The state that a backend shares between its models, from `TRITONBACKEND_Initialize` to
/// `TRITONBACKEND_Finalize`, which normally drops the last [`Arc`].
pub trait Backend: Sized + Send + Sync + 'static {
    /// The type of the backend's models.
    type Model: Model<Backend = Self>;

    /// Whether Triton may initialize instances in parallel (`TRITONBACKEND_GetBackendAttribute`). If
    /// true, [`Instance::initialize`] must support concurrent calls, for one model and for several.
    const PARALLEL_INSTANCE_LOADING: bool = false;

    /// Initializes the backend (`TRITONBACKEND_Initialize`), after a check of the API version.
    ///
    /// # Errors
    ///
    /// An error fails the load of the model that needs the backend.
    fn initialize(context: &BackendContext<'_>) -> Result<Self, Error>;
}

/// A loaded model, from `TRITONBACKEND_ModelInitialize` to `TRITONBACKEND_ModelFinalize`.
pub trait Model: Sized + Send + Sync + 'static {
    /// The type of the model's backend.
    type Backend: Backend<Model = Self>;
    /// The type of the model's instances.
    type Instance: Instance<Model = Self>;

    /// Initializes a model (`TRITONBACKEND_ModelInitialize`): reads, completes and checks its
    /// configuration.
    ///
    /// # Errors
    ///
    /// An error fails the load of the model, with the error's message.
    fn initialize(backend: &Arc<Self::Backend>, context: &mut ModelContext<'_>) -> Result<Self, Error>;
}

/// One instance of a model, from `TRITONBACKEND_ModelInstanceInitialize` to
/// `TRITONBACKEND_ModelInstanceFinalize`, which drops it.
///
/// The drop must end the instance's threads and finish their [`Slot`](crate::Slot)s, because Triton
/// may free the instance once the drop has returned.
pub trait Instance: Sized + Send + 'static {
    /// The type of the instance's model.
    type Model: Model<Instance = Self>;

    /// Whether [`Instance::execute`] is called although the instance is poisoned, for instances that pass requests on to
    /// others. Triton sends requests to a poisoned instance like to any other. If false, and after a panic in `execute`, they
    /// are answered with UNAVAILABLE.
    const EXECUTES_WHEN_POISONED: bool = false;

    /// Initializes an instance (`TRITONBACKEND_ModelInstanceInitialize`), on the loading thread, not on
    /// the executing one.
    ///
    /// # Errors
    ///
    /// An error fails the load of the model, with the error's message.
    fn initialize(model: &Arc<Self::Model>, context: &InstanceContext<'_>) -> Result<Self, Error>;

    /// Executes a batch (`TRITONBACKEND_ModelInstanceExecute`): [accepts](RequestBatch::accept) the
    /// requests and answers their slots, now or later on another thread. Calls for one instance never
    /// overlap. After the return, Triton may send the next batch.
    ///
    /// A panic poisons the instance.
    ///
    /// # Errors
    ///
    /// Before the batch is accepted, Triton answers all its requests with the error. Afterwards the
    /// slots answer their requests, and the error is only logged.
    fn execute(&mut self, batch: RequestBatch<'_>) -> Result<(), Error>;
}

/// The context of [`Backend::initialize`].
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

    /// Returns the backend's name (`TRITONBACKEND_BackendName`).
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the folder that the library was loaded from (`TRITONBACKEND_BackendArtifacts`).
    pub fn location(&self) -> &Path {
        &self.location
    }

    /// Returns the server's `--backend-config` settings (`TRITONBACKEND_BackendConfig`), an object with
    /// the key `cmdline`.
    ///
    /// # Errors
    ///
    /// Triton has no settings, or they are not JSON.
    pub fn config(&self) -> Result<Value, Error> {
        let mut message = std::ptr::null_mut();
        // SAFETY: the backend is live for 'a. Triton keeps the message, which is only read.
        unsafe {
            check(sys::TRITONBACKEND_BackendConfig(self.raw.as_ptr(), &mut message))?;
            config::read_json(message)
        }
        .map_err(|error| error.context("configuration of the backend"))
    }
}
