//! The server, its backend and its models.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use triton_api::{Error, ErrorCode, sys};

use crate::instance::{FakeInstance, InstanceSpec};
use crate::request::RequestBuilder;
use crate::state::{
    BackendAttributeObject, BackendObject, Counts, ErrorObject, LogRecord, MessageObject, ModelObject, lock, path_to_c,
    raw, text_to_c,
};
use crate::symbols::BackendSymbols;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A server with one backend. The record of handles is empty at first.
#[derive(Debug)]
pub struct FakeServer {
    symbols: BackendSymbols,
    backend_config: Value,
    backend_location: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl FakeServer {
    /// Creates a server for the backend with these entry points
    /// ([`backend_symbols!`](crate::backend_symbols)). Waits until no other server exists.
    pub fn new(symbols: BackendSymbols) -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        lock().reset();
        Self {
            symbols,
            backend_config: json!({"cmdline": {"auto-complete-config": "true"}}),
            backend_location: PathBuf::from("."),
            _turn: turn,
        }
    }

    /// Sets the API version that the server reports. The default is that of the header.
    pub fn set_api_version(&mut self, major: u32, minor: u32) {
        lock().settings.api_version = (major, minor);
    }

    /// Sets the `--backend-config` settings.
    pub fn set_backend_config(&mut self, config: Value) {
        self.backend_config = config;
    }

    /// Sets the folder of the backend's library.
    pub fn set_backend_location(&mut self, location: &Path) {
        self.backend_location = location.to_owned();
    }

    /// Sets whether the server has metrics. The default is true.
    pub fn set_metrics(&mut self, available: bool) {
        lock().settings.metrics = available;
    }

    /// Makes one `TRITONBACKEND_ResponseNew` fail, after `good` calls that succeed.
    pub fn fail_response_new(&self, good: u32) {
        lock().settings.fail_response_new = Some(good);
    }

    /// Loads the backend (`TRITONBACKEND_Initialize`). If the call fails, the backend is finalized, as by
    /// the real server.
    ///
    /// # Errors
    ///
    /// The error that the backend returned.
    pub fn load_backend(&self) -> Result<FakeBackend<'_>, Error> {
        FakeBackend::load(self)
    }

    /// Returns a builder for a request.
    pub fn request(&self) -> RequestBuilder {
        RequestBuilder::new()
    }

    /// Returns the lines that the backend logged.
    pub fn logs(&self) -> Vec<LogRecord> {
        lock().logs.clone()
    }

    /// Returns the value of a metric, even if the metric is deleted.
    pub fn metric(&self, family: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        lock().metric_values.get(&(family.to_owned(), labels)).copied()
    }

    /// Counts the objects that the backend holds.
    pub fn counts(&self) -> Counts {
        lock().counts()
    }

    /// Returns the backend's violations of the API.
    pub fn violations(&self) -> Vec<String> {
        lock().violations.clone()
    }

    /// Asserts that the backend violated no rule and holds no objects.
    ///
    /// # Panics
    ///
    /// There is a violation, or the backend holds an object.
    pub fn assert_clean(&self) {
        let (violations, counts) = (self.violations(), self.counts());
        assert!(violations.is_empty(), "violations: {violations:#?}");
        assert_eq!(counts, Counts::default(), "the backend holds objects");
    }
}

/// A loaded backend, which is finalized on drop.
#[derive(Debug)]
pub struct FakeBackend<'s> {
    server: &'s FakeServer,
    id: usize,
    parallel_loading: bool,
    finalized: bool,
}

impl<'s> FakeBackend<'s> {
    fn load(server: &'s FakeServer) -> Result<Self, Error> {
        let (id, attribute) = {
            let mut state = lock();
            let config = state.insert(MessageObject {
                json: server.backend_config.to_string().into_bytes(),
                owned: false,
            });
            let id = state.insert(BackendObject {
                name: text_to_c("fake"),
                location: path_to_c(server.backend_location.clone()),
                config,
                state: 0,
            });
            let attribute = state.insert(BackendAttributeObject {
                parallel_loading: false,
            });
            (id, attribute)
        };
        let handle = raw::<BackendObject>(id);
        let mut backend = Self {
            server,
            id,
            parallel_loading: false,
            finalized: false,
        };
        // SAFETY: the handles are in the record.
        let result = unsafe {
            take_error((server.symbols.initialize)(handle)).and_then(|()| {
                take_error((server.symbols.get_backend_attribute)(
                    handle,
                    raw::<BackendAttributeObject>(attribute),
                ))
            })
        };
        if let Some(attribute) = lock().discard::<BackendAttributeObject>(attribute, "deleted") {
            backend.parallel_loading = attribute.parallel_loading;
        }
        if result.is_err() {
            backend.end().ok();
        }
        result.map(|()| backend)
    }

    /// Returns whether the backend supports loading instances in parallel.
    pub fn parallel_loading(&self) -> bool {
        self.parallel_loading
    }

    /// Loads a model (`TRITONBACKEND_ModelInitialize`). If the call fails, the model is finalized, as by the
    /// real server.
    ///
    /// # Errors
    ///
    /// The error that the backend returned.
    pub fn load_model(&self, spec: ModelSpec) -> Result<FakeModel<'_>, Error> {
        FakeModel::load(self, spec)
    }

    /// Finalizes the backend (`TRITONBACKEND_Finalize`).
    ///
    /// # Errors
    ///
    /// The error that the backend returned.
    pub fn finalize(mut self) -> Result<(), Error> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.finalized, true) {
            return Ok(());
        }
        // SAFETY: the handle is in the record.
        let result = take_error(unsafe { (self.server.symbols.finalize)(raw::<BackendObject>(self.id)) });
        lock().discard::<BackendObject>(self.id, "finalized");
        result
    }
}

impl Drop for FakeBackend<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            lock().violation(format!("TRITONBACKEND_Finalize: {error}"));
        }
    }
}

/// The settings of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// The model's name.
    pub name: String,
    /// The model's version.
    pub version: u64,
    /// The model's folder.
    pub repository: PathBuf,
    /// The model configuration, as Triton's JSON.
    pub config: Value,
    /// Whether the backend should complete the configuration.
    pub auto_complete: bool,
}

impl ModelSpec {
    /// Returns settings for version 1 in the current folder, with an empty configuration and no completion.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: 1,
            repository: PathBuf::from("."),
            config: json!({}),
            auto_complete: false,
        }
    }

    /// Sets the folder.
    #[must_use]
    pub fn repository(mut self, repository: impl Into<PathBuf>) -> Self {
        self.repository = repository.into();
        self
    }

    /// Sets the version.
    #[must_use]
    pub fn version(mut self, version: u64) -> Self {
        self.version = version;
        self
    }

    /// Sets the configuration.
    #[must_use]
    pub fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// Adds a parameter to the configuration, in the form of `config.pbtxt`.
    #[must_use]
    pub fn parameter(mut self, key: &str, value: &str) -> Self {
        self.config["parameters"][key] = json!({"string_value": value});
        self
    }

    /// Sets whether the backend should complete the configuration.
    #[must_use]
    pub fn auto_complete(mut self, auto_complete: bool) -> Self {
        self.auto_complete = auto_complete;
        self
    }
}

/// A loaded model, which is finalized on drop.
#[derive(Debug)]
pub struct FakeModel<'b> {
    backend: &'b FakeBackend<'b>,
    pub(crate) id: usize,
    finalized: bool,
}

impl<'b> FakeModel<'b> {
    fn load(backend: &'b FakeBackend<'b>, spec: ModelSpec) -> Result<Self, Error> {
        let id = lock().insert(ModelObject {
            backend: backend.id,
            name: text_to_c(&spec.name),
            version: spec.version,
            repository: path_to_c(spec.repository),
            config: spec.config.to_string().into_bytes(),
            auto_complete: spec.auto_complete,
            initializing: true,
            state: 0,
        });
        let mut model = Self {
            backend,
            id,
            finalized: false,
        };
        let initialize = model.symbols().model_initialize;
        // SAFETY: the handle is in the record.
        let result = take_error(unsafe { initialize(raw::<ModelObject>(id)) });
        if let Some(model) = lock().peek_mut::<ModelObject>(id) {
            model.initializing = false;
        }
        if result.is_err() {
            model.end().ok();
        }
        result.map(|()| model)
    }

    pub(crate) fn symbols(&self) -> &BackendSymbols {
        &self.backend.server.symbols
    }

    /// Returns the current configuration, including the backend's completion.
    pub fn config(&self) -> Value {
        lock()
            .peek::<ModelObject>(self.id)
            .and_then(|model| serde_json::from_slice(&model.config).ok())
            .unwrap_or(Value::Null)
    }

    /// Loads an instance (`TRITONBACKEND_ModelInstanceInitialize`). If the call fails, the instance is
    /// finalized, as by the real server.
    ///
    /// # Errors
    ///
    /// The error that the backend returned.
    pub fn load_instance(&self, spec: InstanceSpec) -> Result<FakeInstance<'_>, Error> {
        FakeInstance::load(self, spec)
    }

    /// Finalizes the model (`TRITONBACKEND_ModelFinalize`).
    ///
    /// # Errors
    ///
    /// The error that the backend returned.
    pub fn finalize(mut self) -> Result<(), Error> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.finalized, true) {
            return Ok(());
        }
        let finalize = self.symbols().model_finalize;
        // SAFETY: the handle is in the record.
        let result = take_error(unsafe { finalize(raw::<ModelObject>(self.id)) });
        lock().discard::<ModelObject>(self.id, "finalized");
        result
    }
}

impl Drop for FakeModel<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            lock().violation(format!("TRITONBACKEND_ModelFinalize: {error}"));
        }
    }
}

/// Takes ownership of an error that the backend returned, as the real server does.
pub(crate) fn take_error(error: *mut sys::TRITONSERVER_Error) -> Result<(), Error> {
    if error.is_null() {
        return Ok(());
    }
    lock()
        .remove::<ErrorObject>("an entry point's return value", error, "returned")
        .map_or_else(
            |failure| Err(Error::internal(failure.message)),
            |error| {
                Err(Error::new(
                    ErrorCode::from_raw(error.code),
                    error.message.to_string_lossy(),
                ))
            },
        )
}
