//! Violations of the API by a backend are recorded.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::c_void;
use std::ptr;
use std::sync::Mutex;
use std::time::Duration;

use triton_api::sys::*;
use triton_fake::{BackendSymbols, Counts, FakeServer, InstanceSpec, ModelSpec};

type RawError = *mut TRITONSERVER_Error;
type Execute = unsafe fn(*mut TRITONBACKEND_ModelInstance, *mut TRITONBACKEND_Request) -> RawError;

/// The behavior of Execute. One is enough, because only one server exists at a time.
static EXECUTE: Mutex<Option<Execute>> = Mutex::new(None);

unsafe extern "C" fn nothing<T>(_object: *mut T) -> RawError {
    ptr::null_mut()
}

unsafe extern "C" fn no_attributes(
    _backend: *mut TRITONBACKEND_Backend,
    _attributes: *mut TRITONBACKEND_BackendAttribute,
) -> RawError {
    ptr::null_mut()
}

unsafe extern "C" fn execute(
    instance: *mut TRITONBACKEND_ModelInstance,
    requests: *mut *mut TRITONBACKEND_Request,
    _count: u32,
) -> RawError {
    let f = EXECUTE.lock().ok().and_then(|f| *f);
    // SAFETY: each test sends one request.
    f.map_or(ptr::null_mut(), |f| unsafe { f(instance, *requests) })
}

/// Runs a backend with this behavior on one request. Returns the violations, the counts of objects and whether the
/// request was answered, read while the server exists because the next server clears the record.
fn run_backend(behavior: Execute) -> (Vec<String>, Counts, bool) {
    let server = FakeServer::new(BackendSymbols {
        initialize: nothing,
        finalize: nothing,
        get_backend_attribute: no_attributes,
        model_initialize: nothing,
        model_finalize: nothing,
        model_instance_initialize: nothing,
        model_instance_finalize: nothing,
        model_instance_execute: execute,
        model_instance_ready: nothing,
    });
    *EXECUTE.lock().unwrap() = Some(behavior);
    let backend = server.load_backend().unwrap();
    let model = backend.load_model(ModelSpec::new("m")).unwrap();
    let instance = model.load_instance(InstanceSpec::default()).unwrap();
    let request = server.request().bytes_input("text", &[1], &["a"]).output("y").build();
    let _ = instance.execute(&[&request]);
    drop(instance);
    drop(model);
    drop(backend);
    let answered = request.wait(Duration::ZERO).is_ok();
    (server.violations(), server.counts(), answered)
}

unsafe fn response_to(request: *mut TRITONBACKEND_Request) -> *mut TRITONBACKEND_Response {
    let mut response = ptr::null_mut();
    // SAFETY: the caller guarantees a live request.
    unsafe { TRITONBACKEND_ResponseNew(&mut response, request) };
    response
}

/// Answers and releases a request, as a correct backend does.
unsafe fn answer(request: *mut TRITONBACKEND_Request) {
    // SAFETY: the caller guarantees a live request.
    unsafe {
        TRITONBACKEND_ResponseSend(response_to(request), 1, ptr::null_mut());
        TRITONBACKEND_RequestRelease(request, 1);
    }
}

fn has(violations: &[String], words: &str) -> bool {
    violations.iter().any(|violation| violation.contains(words))
}

#[test]
fn correct_backend_has_no_violations() {
    // SAFETY: the request is live.
    let (violations, counts, answered) = run_backend(|_, request| unsafe {
        answer(request);
        ptr::null_mut()
    });
    assert_eq!((violations.len(), counts), (0, Counts::default()));
    assert!(answered);
}

#[test]
fn leaked_handles_are_counted() {
    // SAFETY: the request is live; the leaks are intended.
    let (_, counts, answered) = run_backend(|_, request| unsafe {
        response_to(request);
        TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, c"leaked".as_ptr());
        let mut message = ptr::null_mut();
        TRITONSERVER_MessageNewFromSerializedJson(&mut message, c"{}".as_ptr(), 2);
        let mut attributes = ptr::null_mut();
        TRITONSERVER_BufferAttributesNew(&mut attributes);
        let mut family = ptr::null_mut();
        TRITONSERVER_MetricFamilyNew(&mut family, TRITONSERVER_METRIC_KIND_GAUGE, c"g".as_ptr(), c"".as_ptr());
        let label = TRITONSERVER_ParameterNew(
            c"l".as_ptr(),
            TRITONSERVER_PARAMETER_STRING,
            c"v".as_ptr().cast::<c_void>(),
        );
        let mut metric = ptr::null_mut();
        TRITONSERVER_MetricNew(&mut metric, family, [label.cast_const()].as_mut_ptr(), 1);
        ptr::null_mut()
    });
    let all = Counts {
        errors: 1,
        messages: 1,
        parameters: 1,
        metric_families: 1,
        metrics: 1,
        buffer_attributes: 1,
        responses: 1,
        requests: 1,
    };
    assert_eq!(counts, all);
    assert!(!answered);
}

#[test]
fn release_twice_is_violation() {
    // SAFETY: handles are never dereferenced.
    let (violations, ..) = run_backend(|_, request| unsafe {
        answer(request);
        TRITONBACKEND_RequestRelease(request, 1)
    });
    assert!(has(&violations, "RequestRelease: request"), "{violations:?}");
}

#[test]
fn send_twice_is_violation() {
    // SAFETY: handles are never dereferenced.
    let (violations, ..) = run_backend(|_, request| unsafe {
        let response = response_to(request);
        TRITONBACKEND_ResponseSend(response, 1, ptr::null_mut());
        let error = TRITONBACKEND_ResponseSend(response, 1, ptr::null_mut());
        TRITONSERVER_ErrorDelete(error);
        TRITONBACKEND_ResponseDelete(response);
        TRITONBACKEND_ResponseSend(response_to(request), 1, ptr::null_mut());
        TRITONBACKEND_RequestRelease(request, 1);
        ptr::null_mut()
    });
    assert!(has(&violations, "ResponseSend: response") && has(&violations, "was already sent"));
    assert!(has(&violations, "ResponseDelete: response"), "{violations:?}");
    assert!(has(&violations, "was already answered"), "{violations:?}");
}

#[test]
fn release_without_final_response_is_violation() {
    // SAFETY: handles are never dereferenced.
    let (violations, ..) = run_backend(|_, request| unsafe {
        let response = response_to(request);
        // Without the final flag.
        TRITONBACKEND_ResponseSend(response, 0, ptr::null_mut());
        TRITONBACKEND_RequestRelease(request, 1);
        ptr::null_mut()
    });
    assert!(has(&violations, "has no final response"), "{violations:?}");
}

#[test]
fn use_after_release_is_violation() {
    // SAFETY: handles are never dereferenced.
    let (violations, ..) = run_backend(|instance, request| unsafe {
        let late = response_to(request);
        let mut input = ptr::null_mut();
        TRITONBACKEND_RequestInputByIndex(request, 0, &mut input);
        answer(request);
        let mut count = 0;
        TRITONBACKEND_RequestInputCount(request, &mut count);
        let (mut buffer, mut size, mut memory, mut id) = (ptr::null(), 0, 0, 0);
        TRITONBACKEND_InputBuffer(input, 0, &mut buffer, &mut size, &mut memory, &mut id);
        TRITONBACKEND_ModelInstanceReportStatistics(instance, request, true, 1, 2, 3, 4);
        TRITONBACKEND_ResponseSend(late, 1, ptr::null_mut());
        ptr::null_mut()
    });
    for words in [
        "RequestInputCount: request",
        "InputBuffer: input",
        "ReportStatistics: called after the request was released",
        "ResponseSend: request",
    ] {
        assert!(has(&violations, words), "{words}: {violations:?}");
    }
}

#[test]
fn execute_error_after_response_is_violation() {
    // SAFETY: handles are never dereferenced.
    let (violations, ..) = run_backend(|_, request| unsafe {
        answer(request);
        TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, c"late".as_ptr())
    });
    assert!(has(&violations, "after request"), "{violations:?}");
}

#[test]
fn invalid_statistics_are_violations() {
    // SAFETY: handles are never dereferenced.
    let (violations, ..) = run_backend(|instance, request| unsafe {
        TRITONBACKEND_ModelInstanceReportStatistics(instance, request, true, 0, 2, 3, 4);
        TRITONBACKEND_ModelInstanceReportStatistics(instance, request, true, 1, 2, 3, 4);
        TRITONBACKEND_ModelInstanceReportBatchStatistics(instance, 1, 1, 4, 3, 5);
        answer(request);
        ptr::null_mut()
    });
    assert!(has(&violations, "ReportStatistics: invalid times"));
    assert!(has(&violations, "called twice for one request"));
    assert!(has(&violations, "ReportBatchStatistics: invalid times"));
}

#[test]
fn use_of_objects_of_the_server_is_violation() {
    // SAFETY: handles are never dereferenced.
    let (violations, ..) = run_backend(|instance, request| unsafe {
        let mut model = ptr::null_mut();
        TRITONBACKEND_ModelInstanceModel(instance, &mut model);
        let mut backend = ptr::null_mut();
        TRITONBACKEND_ModelBackend(model, &mut backend);
        let mut message = ptr::null_mut();
        TRITONBACKEND_BackendConfig(backend, &mut message);
        TRITONSERVER_MessageDelete(message);
        TRITONBACKEND_ModelConfig(model, 1, &mut message);
        TRITONBACKEND_ModelSetConfig(model, 1, message);
        TRITONSERVER_MessageDelete(message);
        TRITONSERVER_MessageDelete(message);
        TRITONSERVER_ErrorDelete(ptr::null_mut());
        let mut output = ptr::null_mut();
        let response = response_to(request);
        let name = c"unwanted".as_ptr();
        TRITONBACKEND_ResponseOutput(response, &mut output, name, TRITONSERVER_TYPE_BYTES, ptr::null(), 0);
        TRITONBACKEND_ResponseSend(response, 1, ptr::null_mut());
        TRITONBACKEND_RequestRelease(request, 1);
        ptr::null_mut()
    });
    for words in [
        "MessageDelete: the message belongs to Triton",
        "ModelSetConfig: called outside of",
        "MessageDelete: message",
        "ErrorDelete: null error",
        "output 'unwanted' was not requested",
    ] {
        assert!(has(&violations, words), "{words}: {violations:?}");
    }
}
