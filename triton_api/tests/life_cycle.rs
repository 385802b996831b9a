//! Initialize and finalize, with and without failures.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod echo;

use std::sync::atomic::Ordering;

use echo::{ALIVE, config};
use serde_json::json;
use triton_api::{ErrorCode, InstanceKind, MemoryType, MemoryUsage};
use triton_fake::{Counts, FakeServer, InstanceSpec, ModelSpec};

fn server() -> FakeServer {
    FakeServer::new(triton_fake::backend_symbols!())
}

#[test]
fn finalize_drops_all_states() {
    let server = server();
    let backend = server.load_backend().unwrap();
    assert!(backend.parallel_loading());
    let model = backend
        .load_model(ModelSpec::new("m").version(3).repository("/models/m"))
        .unwrap();
    let instance = model.load_instance(InstanceSpec::default()).unwrap();
    let second = model
        .load_instance(InstanceSpec {
            name: "second".to_owned(),
            kind: InstanceKind::Gpu,
            device_id: 1,
        })
        .unwrap();
    assert_eq!(instance.ready(), Ok(()));
    assert_eq!(ALIVE.load(Ordering::SeqCst), 4);
    let usage = |memory_type, byte_size| MemoryUsage {
        memory_type,
        memory_type_id: 0,
        byte_size,
    };
    assert_eq!(
        instance.memory_usage(),
        [usage(MemoryType::Cpu, 15), usage(MemoryType::Gpu, 7)]
    );
    assert_eq!(
        server.counts(),
        Counts {
            metric_families: 2,
            metrics: 2,
            ..Counts::default()
        }
    );
    assert!(
        server
            .logs()
            .iter()
            .any(|log| log.message == "m 3 /models/m/3" && log.file.ends_with("echo/mod.rs"))
    );
    second.finalize().unwrap();
    instance.finalize().unwrap();
    model.finalize().unwrap();
    backend.finalize().unwrap();
    assert_eq!(ALIVE.load(Ordering::SeqCst), 0);
    server.assert_clean();
}

#[test]
fn config_is_completed_only_on_request() {
    let server = server();
    let backend = server.load_backend().unwrap();
    for wanted in [true, false] {
        let model = backend.load_model(ModelSpec::new("m").auto_complete(wanted)).unwrap();
        assert_eq!(model.config().get("output").is_some(), wanted);
        drop(model);
    }
    drop(backend);
    server.assert_clean();
}

#[test]
fn load_failure_leaves_no_handles() {
    let server = server();
    let backend = server.load_backend().unwrap();
    for (behavior, code, message) in [
        ("fail_model", ErrorCode::NotFound, "planned failure of the model"),
        (
            "panic_model",
            ErrorCode::Internal,
            "panic in TRITONBACKEND_ModelInitialize; see the server log",
        ),
    ] {
        let error = backend
            .load_model(ModelSpec::new("m").config(config(behavior)))
            .unwrap_err();
        assert_eq!((error.code(), error.message()), (code, message));
    }
    let bad = json!({"parameters": {"behavior": {}}});
    let error = backend.load_model(ModelSpec::new("m").config(bad)).unwrap_err();
    assert_eq!(error.message(), "model 'm': parameter 'behavior' has no string_value");
    for (behavior, code, message) in [
        (
            "fail_instance",
            ErrorCode::Unsupported,
            "instance 'instance_0' of 'm' version 1: Cpu 0",
        ),
        (
            "panic_instance",
            ErrorCode::Internal,
            "panic in TRITONBACKEND_ModelInstanceInitialize; see the server log",
        ),
    ] {
        let model = backend
            .load_model(ModelSpec::new("m").config(config(behavior)))
            .unwrap();
        let error = model.load_instance(InstanceSpec::default()).unwrap_err();
        assert_eq!((error.code(), error.message()), (code, message));
        drop(model);
    }
    // The backend still loads models.
    drop(backend.load_model(ModelSpec::new("m")).unwrap());
    drop(backend);
    assert_eq!(ALIVE.load(Ordering::SeqCst), 0);
    assert!(server.logs().iter().any(|log| log.message.contains("secret")));
    server.assert_clean();
}

#[test]
fn backend_failure_leaves_no_handles() {
    let mut server = server();
    server.set_backend_config(json!({"cmdline": {"fail": "true"}}));
    let error = server.load_backend().unwrap_err();
    assert_eq!(error.message(), "planned failure of the backend");
    server.assert_clean();
}

#[test]
fn load_backend_checks_the_api_version() {
    let mut server = server();
    for (major, minor, fits) in [
        (1, 19, true),
        (1, 25, true),
        (1, 18, false),
        (2, 19, false),
        (0, 19, false),
    ] {
        server.set_api_version(major, minor);
        let loaded = server.load_backend();
        assert_eq!(loaded.is_ok(), fits, "{major}.{minor}");
        if let Err(error) = loaded {
            assert_eq!(error.code(), ErrorCode::Unsupported);
            assert!(error.message().contains(&format!("{major}.{minor}")));
        }
    }
    server.assert_clean();
}

#[test]
fn server_without_metrics_still_serves() {
    let mut server = server();
    server.set_metrics(false);
    let backend = server.load_backend().unwrap();
    let model = backend.load_model(ModelSpec::new("m")).unwrap();
    let instance = model.load_instance(InstanceSpec::default()).unwrap();
    instance.execute(&[]).unwrap();
    assert_eq!(server.metric("echo_calls_total", &[("model", "m")]), None);
    drop(instance);
    drop(model);
    drop(backend);
    server.assert_clean();
}

#[test]
fn metrics_count_calls() {
    let server = server();
    let backend = server.load_backend().unwrap();
    let model = backend.load_model(ModelSpec::new("m")).unwrap();
    let instance = model.load_instance(InstanceSpec::default()).unwrap();
    instance.execute(&[]).unwrap();
    instance.execute(&[]).unwrap();
    let labels = [("model", "m")];
    assert_eq!(server.metric("echo_calls_total", &labels), Some(2.0));
    assert_eq!(server.metric("echo_busy", &labels), Some(2.0));
    drop(instance);
    drop(model);
    drop(backend);
    server.assert_clean();
}
