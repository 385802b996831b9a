//! The record of handles: every object that was handed out, its fate, and all violations of the API.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::PathBuf;
use std::ptr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use triton_api::{DataType, MemoryType, MemoryUsage, Timestamps, sys};

use crate::instance::BatchStatistics;
use crate::request::{FakeOutput, FakeResponse, ParameterValue, RequestStatistics};

static STATE: Mutex<State> = Mutex::new(State::new());

/// Notified after every call from the backend.
pub(crate) static CHANGED: Condvar = Condvar::new();

/// Locks the record. The lock is never held during a call into the backend.
pub(crate) fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of objects of each kind that the backend holds and has not released.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field counts the TRITON objects of that name")]
pub struct Counts {
    pub errors: usize,
    pub messages: usize,
    pub parameters: usize,
    pub metric_families: usize,
    pub metrics: usize,
    pub buffer_attributes: usize,
    pub responses: usize,
    /// Requests that were passed to Execute and are not released.
    pub requests: usize,
}

/// A line that the backend logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// `INFO`, `WARNING`, `ERROR` or `VERBOSE`.
    pub level: &'static str,
    /// The source file of the log statement.
    pub file: String,
    /// The line in the source file.
    pub line: i32,
    /// The message.
    pub message: String,
}

pub(crate) struct ErrorObject {
    pub code: sys::TRITONSERVER_Error_Code,
    pub message: CString,
}

pub(crate) struct MessageObject {
    pub json: Vec<u8>,
    /// Whether the backend must delete the message.
    pub owned: bool,
}

pub(crate) struct ParameterObject {
    pub name: String,
    pub value: String,
}

pub(crate) struct FamilyObject {
    pub kind: sys::TRITONSERVER_MetricKind,
    pub name: String,
    pub metrics: usize,
}

/// The key of a metric in [`State::metric_values`], which keeps the value after the metric is deleted.
pub(crate) type MetricKey = (String, BTreeMap<String, String>);

pub(crate) struct MetricObject {
    pub family: usize,
    pub kind: sys::TRITONSERVER_MetricKind,
    pub key: MetricKey,
}

pub(crate) struct AttributesObject {
    pub usage: MemoryUsage,
}

pub(crate) struct BackendObject {
    pub name: CString,
    pub location: CString,
    pub config: usize,
    /// The pointer that the backend stored, as an address.
    pub state: usize,
}

pub(crate) struct BackendAttributeObject {
    pub parallel_loading: bool,
}

pub(crate) struct ModelObject {
    pub backend: usize,
    pub name: CString,
    pub version: u64,
    pub repository: CString,
    pub config: Vec<u8>,
    pub auto_complete: bool,
    /// ModelSetConfig is valid only while this is true.
    pub initializing: bool,
    pub state: usize,
}

pub(crate) struct InstanceObject {
    pub model: usize,
    pub name: CString,
    pub kind: sys::TRITONSERVER_InstanceGroupKind,
    pub device_id: i32,
    pub state: usize,
    pub memory_usage: Vec<MemoryUsage>,
    pub batches: Vec<BatchStatistics>,
}

pub(crate) struct InputObject {
    pub name: CString,
    pub datatype: sys::TRITONSERVER_DataType,
    pub shape: Vec<i64>,
    pub buffers: Vec<Vec<u8>>,
    pub memory_type: MemoryType,
    /// A reported size that differs from that of the buffers, as from a faulty server.
    pub claimed_size: Option<u64>,
}

pub(crate) struct RequestObject {
    pub id: Option<CString>,
    pub inputs: Vec<usize>,
    pub outputs: Vec<CString>,
    pub output_memory: MemoryType,
    pub cancelled: bool,
    /// The client's time limit in microseconds; 0 without one.
    pub timeout_us: u64,
    /// Whether the request was passed to Execute, so the backend or Triton must answer it.
    pub executing: bool,
    /// Whether the model may send several responses.
    pub decoupled: bool,
    pub released: bool,
    /// Whether there is a response that is not sent.
    pub has_response: bool,
    pub responses: Vec<FakeResponse>,
    pub statistics: Vec<RequestStatistics>,
}

pub(crate) struct ResponseObject {
    pub request: usize,
    pub outputs: Vec<usize>,
    pub parameters: BTreeMap<String, ParameterValue>,
}

pub(crate) struct OutputObject {
    pub response: usize,
    pub name: String,
    pub datatype: sys::TRITONSERVER_DataType,
    pub shape: Vec<i64>,
    pub buffer: Option<Vec<u8>>,
}

pub(crate) enum Object {
    Error(ErrorObject),
    Message(MessageObject),
    Parameter(ParameterObject),
    Family(FamilyObject),
    Metric(MetricObject),
    Attributes(AttributesObject),
    Backend(BackendObject),
    BackendAttribute(BackendAttributeObject),
    Model(ModelObject),
    Instance(InstanceObject),
    Input(InputObject),
    Request(RequestObject),
    Response(ResponseObject),
    Output(OutputObject),
}

/// One kind of [`Object`].
pub(crate) trait Kind: Sized {
    const NAME: &'static str;
    /// The opaque C type of the object.
    type Raw;
    fn wrap(self) -> Object;
    fn get(object: &Object) -> Option<&Self>;
    fn get_mut(object: &mut Object) -> Option<&mut Self>;
    fn unwrap(object: Object) -> Option<Self>;
}

macro_rules! kinds {
    ($($variant:ident($type:ident) = $raw:ident $name:literal;)*) => {
        $(impl Kind for $type {
            const NAME: &'static str = $name;
            type Raw = sys::$raw;
            fn wrap(self) -> Object {
                Object::$variant(self)
            }
            fn get(object: &Object) -> Option<&Self> {
                if let Object::$variant(inner) = object { Some(inner) } else { None }
            }
            fn get_mut(object: &mut Object) -> Option<&mut Self> {
                if let Object::$variant(inner) = object { Some(inner) } else { None }
            }
            fn unwrap(object: Object) -> Option<Self> {
                if let Object::$variant(inner) = object { Some(inner) } else { None }
            }
        })*
    };
}

kinds! {
    Error(ErrorObject) = TRITONSERVER_Error "error";
    Message(MessageObject) = TRITONSERVER_Message "message";
    Parameter(ParameterObject) = TRITONSERVER_Parameter "parameter";
    Family(FamilyObject) = TRITONSERVER_MetricFamily "metric family";
    Metric(MetricObject) = TRITONSERVER_Metric "metric";
    Attributes(AttributesObject) = TRITONSERVER_BufferAttributes "buffer attributes";
    Backend(BackendObject) = TRITONBACKEND_Backend "backend";
    BackendAttribute(BackendAttributeObject) = TRITONBACKEND_BackendAttribute "backend attribute";
    Model(ModelObject) = TRITONBACKEND_Model "model";
    Instance(InstanceObject) = TRITONBACKEND_ModelInstance "model instance";
    Input(InputObject) = TRITONBACKEND_Input "input";
    Request(RequestObject) = TRITONBACKEND_Request "request";
    Response(ResponseObject) = TRITONBACKEND_Response "response";
    Output(OutputObject) = TRITONBACKEND_Output "output";
}

/// The server's settings.
pub(crate) struct Settings {
    pub api_version: (u32, u32),
    pub metrics: bool,
    /// Counts down with each ResponseNew, which fails at 0.
    pub fail_response_new: Option<u32>,
}

impl Settings {
    const fn new() -> Self {
        Self {
            api_version: (
                sys::TRITONBACKEND_API_VERSION_MAJOR,
                sys::TRITONBACKEND_API_VERSION_MINOR,
            ),
            metrics: true,
            fail_response_new: None,
        }
    }
}

pub(crate) struct State {
    /// Smaller handles belong to an earlier server and are ignored.
    first_id: usize,
    next_id: usize,
    objects: BTreeMap<usize, Object>,
    /// The kind and the fate of each object that no longer exists.
    gone: BTreeMap<usize, (&'static str, &'static str)>,
    pub violations: Vec<String>,
    pub logs: Vec<LogRecord>,
    pub metric_values: BTreeMap<MetricKey, f64>,
    pub settings: Settings,
}

/// The failure of a call, which becomes an error object.
pub(crate) struct Failure {
    pub code: sys::TRITONSERVER_Error_Code,
    pub message: String,
}

impl Failure {
    pub(crate) fn new(code: sys::TRITONSERVER_Error_Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

impl State {
    const fn new() -> Self {
        Self {
            first_id: 1,
            next_id: 1,
            objects: BTreeMap::new(),
            gone: BTreeMap::new(),
            violations: Vec::new(),
            logs: Vec::new(),
            metric_values: BTreeMap::new(),
            settings: Settings::new(),
        }
    }

    /// Clears the record for a new server. Handles keep counting, so a late thread of a failed test does
    /// not affect the next test.
    pub(crate) fn reset(&mut self) {
        let next_id = self.next_id;
        *self = Self {
            first_id: next_id,
            next_id,
            ..Self::new()
        };
    }

    pub(crate) fn violation(&mut self, text: String) {
        self.violations.push(text);
    }

    pub(crate) fn insert<T: Kind>(&mut self, object: T) -> usize {
        let id = self.next_id;
        self.next_id += 1;
        self.objects.insert(id, object.wrap());
        id
    }

    /// Adds an object and returns its handle.
    pub(crate) fn insert_raw<T: Kind>(&mut self, object: T) -> *mut T::Raw {
        raw::<T>(self.insert(object))
    }

    pub(crate) fn peek<T: Kind>(&self, id: usize) -> Option<&T> {
        self.objects.get(&id).and_then(T::get)
    }

    pub(crate) fn peek_mut<T: Kind>(&mut self, id: usize) -> Option<&mut T> {
        self.objects.get_mut(&id).and_then(T::get_mut)
    }

    /// Returns the object behind a handle that the backend passed to `function`.
    pub(crate) fn get<T: Kind>(&mut self, function: &str, handle: *const T::Raw) -> Result<&mut T, Failure> {
        let id = id(handle);
        if self.peek::<T>(id).is_none() {
            return Err(self.bad_handle::<T>(function, id));
        }
        self.peek_mut(id)
            .ok_or_else(|| Failure::new(sys::TRITONSERVER_ERROR_INTERNAL, "bad handle"))
    }

    /// Removes the object behind a handle that the backend passed to `function`.
    pub(crate) fn remove<T: Kind>(
        &mut self,
        function: &str,
        handle: *const T::Raw,
        fate: &'static str,
    ) -> Result<T, Failure> {
        self.get::<T>(function, handle)?;
        self.discard(id(handle), fate)
            .ok_or_else(|| Failure::new(sys::TRITONSERVER_ERROR_INTERNAL, "bad handle"))
    }

    pub(crate) fn discard<T: Kind>(&mut self, id: usize, fate: &'static str) -> Option<T> {
        self.gone.insert(id, (T::NAME, fate));
        self.objects.remove(&id).and_then(T::unwrap)
    }

    fn bad_handle<T: Kind>(&mut self, function: &str, id: usize) -> Failure {
        let text = if id == 0 {
            format!("{function}: null {}", T::NAME)
        } else if let Some((name, fate)) = self.gone.get(&id) {
            format!("{function}: {name} {id} was already {fate}")
        } else {
            format!("{function}: handle {id} is not of kind {}", T::NAME)
        };
        if id == 0 || id >= self.first_id {
            self.violation(text.clone());
        }
        Failure::new(sys::TRITONSERVER_ERROR_INTERNAL, text)
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for object in self.objects.values() {
            match object {
                Object::Error(_) => counts.errors += 1,
                Object::Message(message) => counts.messages += usize::from(message.owned),
                Object::Parameter(_) => counts.parameters += 1,
                Object::Family(_) => counts.metric_families += 1,
                Object::Metric(_) => counts.metrics += 1,
                Object::Attributes(_) => counts.buffer_attributes += 1,
                Object::Response(_) => counts.responses += 1,
                Object::Request(request) => {
                    counts.requests += usize::from(request.executing && !request.released);
                }
                _ => {}
            }
        }
        counts
    }

    /// Removes the outputs of a response and returns them.
    pub(crate) fn close_response(
        &mut self,
        response: &ResponseObject,
        fate: &'static str,
    ) -> BTreeMap<String, FakeOutput> {
        let mut outputs = BTreeMap::new();
        for &id in &response.outputs {
            if let Some(output) = self.discard::<OutputObject>(id, fate) {
                outputs.insert(
                    output.name,
                    FakeOutput {
                        datatype: DataType::from_raw(output.datatype),
                        shape: output.shape,
                        data: output.buffer.unwrap_or_default(),
                    },
                );
            }
        }
        outputs
    }

    /// Records a violation if the times are 0 or not in order.
    pub(crate) fn check_times(&mut self, function: &str, times: &Timestamps) {
        let in_order = times.exec_start <= times.compute_start
            && times.compute_start <= times.compute_end
            && times.compute_end <= times.exec_end;
        if times.exec_start == 0 || !in_order {
            self.violation(format!("{function}: invalid times {times:?}"));
        }
    }
}

/// Returns the handle with number `id`: an address below all mapped memory, so a dereference crashes.
pub(crate) fn raw<T: Kind>(id: usize) -> *mut T::Raw {
    ptr::without_provenance_mut(id)
}

/// Returns the number of a handle.
pub(crate) fn id<T>(handle: *const T) -> usize {
    handle.addr()
}

/// Converts a path to a C string.
pub(crate) fn path_to_c(path: PathBuf) -> CString {
    use std::os::unix::ffi::OsStringExt;
    CString::new(path.into_os_string().into_vec()).unwrap_or_default()
}

/// Converts text to a C string; the text must not contain a NUL.
pub(crate) fn text_to_c(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}
