//! The server's side of a model instance.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use triton_api::{Error, InstanceKind, MemoryUsage, Timestamps};

use crate::request::{FakeRequest, FakeResponse};
use crate::server::{FakeModel, take_error};
use crate::state::{InputObject, InstanceObject, RequestObject, id, lock, raw, text_to_c};

/// A report of `TRITONBACKEND_ModelInstanceReportBatchStatistics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchStatistics {
    /// The number of batch elements.
    pub batch_size: u64,
    /// The times of the batch.
    pub times: Timestamps,
}

/// The settings of a model instance; the default is the CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceSpec {
    /// The instance's name.
    pub name: String,
    /// The kind of device.
    pub kind: InstanceKind,
    /// The GPU's index.
    pub device_id: i32,
}

impl Default for InstanceSpec {
    fn default() -> Self {
        Self {
            name: "instance_0".to_owned(),
            kind: InstanceKind::Cpu,
            device_id: 0,
        }
    }
}

/// A loaded instance, which is finalized on drop.
#[derive(Debug)]
pub struct FakeInstance<'m> {
    model: &'m FakeModel<'m>,
    id: usize,
    finalized: bool,
}

impl<'m> FakeInstance<'m> {
    pub(crate) fn load(model: &'m FakeModel<'m>, spec: InstanceSpec) -> Result<Self, Error> {
        let id = lock().insert(InstanceObject {
            model: model.id,
            name: text_to_c(&spec.name),
            kind: spec.kind.raw(),
            device_id: spec.device_id,
            state: 0,
            memory_usage: Vec::new(),
            batches: Vec::new(),
        });
        let mut instance = Self {
            model,
            id,
            finalized: false,
        };
        let initialize = model.symbols().model_instance_initialize;
        // SAFETY: the handle is in the record.
        let result = take_error(unsafe { initialize(raw::<InstanceObject>(id)) });
        if result.is_err() {
            // The server also finalizes an instance that failed to initialize.
            instance.end().ok();
        }
        result.map(|()| instance)
    }

    /// Calls `TRITONBACKEND_ModelInstanceExecute`. If the call fails, the server answers and releases
    /// the requests, as the real server does.
    ///
    /// # Errors
    ///
    /// The error that the backend returned.
    pub fn execute(&self, requests: &[&FakeRequest]) -> Result<(), Error> {
        self.run(requests, false)
    }

    /// Calls [`FakeInstance::execute`] with a null pointer after the requests.
    ///
    /// # Errors
    ///
    /// The error that the backend returned.
    pub fn execute_with_null(&self, requests: &[&FakeRequest]) -> Result<(), Error> {
        self.run(requests, true)
    }

    fn run(&self, requests: &[&FakeRequest], null: bool) -> Result<(), Error> {
        let mut handles: Vec<_> = requests
            .iter()
            .map(|request| raw::<RequestObject>(request.id))
            .collect();
        let config = self.model.config();
        let decoupled = config.pointer("/model_transaction_policy/decoupled") == Some(&Value::Bool(true));
        {
            let mut state = lock();
            for request in requests {
                if let Some(request) = state.peek_mut::<RequestObject>(request.id) {
                    request.executing = true;
                    request.decoupled = decoupled;
                }
            }
        }
        if null {
            handles.push(std::ptr::null_mut());
        }
        let count = u32::try_from(handles.len()).map_err(|_| Error::invalid_arg("too many requests for one call"))?;
        let array = if handles.is_empty() {
            std::ptr::null_mut()
        } else {
            handles.as_mut_ptr()
        };
        let execute = self.model.symbols().model_instance_execute;
        // SAFETY: the handles are in the record, or null if the test requests it.
        let result = take_error(unsafe { execute(raw::<InstanceObject>(self.id), array, count) });
        // The backend must not use the array after the call, so its contents become invalid.
        handles.fill(std::ptr::without_provenance_mut(usize::MAX));
        drop(handles);
        if let Err(error) = &result {
            for request in requests {
                take_back(request, error);
            }
        }
        result
    }

    /// Calls `TRITONBACKEND_ModelInstanceReady`.
    ///
    /// # Errors
    ///
    /// The error that the backend returned.
    pub fn ready(&self) -> Result<(), Error> {
        let ready = self.model.symbols().model_instance_ready;
        // SAFETY: the handle is in the record.
        take_error(unsafe { ready(raw::<InstanceObject>(self.id)) })
    }

    /// Returns the reported batch statistics.
    pub fn batch_statistics(&self) -> Vec<BatchStatistics> {
        lock()
            .peek::<InstanceObject>(self.id)
            .map(|instance| instance.batches.clone())
            .unwrap_or_default()
    }

    /// Returns the memory usage of the last report.
    pub fn memory_usage(&self) -> Vec<MemoryUsage> {
        lock()
            .peek::<InstanceObject>(self.id)
            .map(|instance| instance.memory_usage.clone())
            .unwrap_or_default()
    }

    /// Returns the current configuration of the model.
    pub fn model_config(&self) -> Value {
        self.model.config()
    }

    /// Calls `TRITONBACKEND_ModelInstanceFinalize`.
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
        let handle = raw::<InstanceObject>(self.id);
        let finalize = self.model.symbols().model_instance_finalize;
        // SAFETY: the handle is in the record.
        let result = take_error(unsafe { finalize(handle) });
        lock().discard::<InstanceObject>(id(handle), "finalized");
        result
    }
}

impl Drop for FakeInstance<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            lock().violation(format!("TRITONBACKEND_ModelInstanceFinalize: {error}"));
        }
    }
}

/// Gives the requests of one queue to several instances, as the server does with the instances of a model: each has a
/// thread that takes a request when the call for the one before has returned. Returns when the queue is empty.
///
/// An instance whose calls return at once takes most of the requests, also if they return with an error.
pub fn execute_from_shared_queue(instances: &[&FakeInstance<'_>], requests: &[FakeRequest]) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for instance in instances {
            let next = &next;
            scope.spawn(move || {
                while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // The request has the error.
                    let _ = instance.execute(&[request]);
                }
            });
        }
    });
}

/// Answers and releases a request after Execute returned an error.
fn take_back(request: &FakeRequest, error: &Error) {
    let number = request.id;
    let mut state = lock();
    let Some(request) = state.peek_mut::<RequestObject>(number) else {
        return;
    };
    let touched = request.released || !request.responses.is_empty();
    request.released = true;
    request.responses.push(FakeResponse {
        is_final: true,
        error: Some(error.clone()),
        outputs: Default::default(),
        parameters: Default::default(),
    });
    for input in std::mem::take(&mut request.inputs) {
        state.discard::<InputObject>(input, "released with its request");
    }
    if touched {
        state.violation(format!(
            "TRITONBACKEND_ModelInstanceExecute: an error was returned after request {number} \
             was answered or released"
        ));
    }
}
