//! Requests through the exported symbols: each is answered once and released once on every path.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod echo;

use std::time::Duration;

use echo::{LIMIT, config};
use triton_api::{DataType, ErrorCode, MemoryType};
use triton_fake::{FakeInstance, FakeRequest, FakeServer, InstanceSpec, ModelSpec, ParameterValue, RequestBuilder};

const SOON: Duration = Duration::from_secs(10);

/// Runs `test` on an instance with this behavior, unloads it and checks that all handles were released.
fn with_instance(behavior: &str, test: impl FnOnce(&FakeServer, &FakeInstance<'_>)) {
    let server = FakeServer::new(triton_fake::backend_symbols!());
    let backend = server.load_backend().unwrap();
    let model = backend
        .load_model(ModelSpec::new("m").config(config(behavior)))
        .unwrap();
    let instance = model.load_instance(InstanceSpec::default()).unwrap();
    test(&server, &instance);
    drop(instance);
    drop(model);
    drop(backend);
    server.assert_clean();
}

fn text(server: &FakeServer, text: &str) -> FakeRequest {
    server
        .request()
        .bytes_input("text", &[1, 1], &[text])
        .output("echoed")
        .build()
}

/// Returns the error of a request that the backend answered once.
fn error_of(request: &FakeRequest) -> (ErrorCode, String) {
    let response = request.wait(SOON).unwrap();
    assert_eq!(request.final_responses(), 1);
    assert!(response.outputs.is_empty() || response.error.is_some());
    let error = response.error.expect("an error");
    (error.code(), error.message().to_owned())
}

fn echoed(request: &FakeRequest) -> Vec<String> {
    let response = request.wait(SOON).unwrap();
    assert_eq!(response.error, None);
    assert_eq!(request.final_responses(), 1);
    response.outputs["echoed"].strings().unwrap()
}

#[test]
fn execute_batch_answers_each_request() {
    with_instance("echo", |server, instance| {
        let first = server
            .request()
            .id("abc")
            .bytes_input("text", &[2, 1], &["one", ""])
            .raw_input("other", DataType::Int32, &[1], &[0; 4])
            .output("echoed")
            .output("numbers")
            .build();
        let second = text(server, "two");
        instance.execute(&[&first, &second]).unwrap();

        let response = first.wait(SOON).unwrap();
        assert!(response.is_final);
        assert_eq!(response.error, None);
        assert_eq!(response.outputs.len(), 2);
        let output = &response.outputs["echoed"];
        assert_eq!(output.strings().unwrap(), ["one", ""]);
        assert_eq!(output.shape, [2, 1]);
        assert_eq!(output.datatype, Some(DataType::Bytes));
        let numbers = &response.outputs["numbers"];
        assert_eq!(numbers.data, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(numbers.datatype, Some(DataType::Int16));
        let parameter = |name: &str| response.parameters[name].clone();
        assert_eq!(parameter("id"), ParameterValue::String("abc".to_owned()));
        assert_eq!(parameter("count"), ParameterValue::Int(2));
        assert_eq!(parameter("cancelled"), ParameterValue::Bool(false));
        assert_eq!(echoed(&second), ["two"]);

        for request in [first, second] {
            let statistics = request.statistics();
            assert_eq!(statistics.len(), 1);
            assert!(statistics[0].success);
            let times = statistics[0].times;
            assert!(times.exec_start < times.exec_end);
        }
        let sizes: Vec<u64> = instance
            .batch_statistics()
            .iter()
            .map(|batch| batch.batch_size)
            .collect();
        assert_eq!(sizes, [2, 1]);
    });
}

#[test]
fn execute_empty_batch_succeeds() {
    for behavior in ["echo", "thread", "forget_to_accept"] {
        with_instance(behavior, |_, instance| {
            assert_eq!(instance.execute(&[]), Ok(()));
        });
    }
}

#[test]
fn respond_builds_only_requested_outputs() {
    with_instance("echo", |server, instance| {
        let request = server.request().bytes_input("text", &[1], &["a"]).build();
        instance.execute(&[&request]).unwrap();
        let response = request.wait(SOON).unwrap();
        assert_eq!((response.error, response.outputs.len()), (None, 0));
    });
}

#[test]
fn input_in_several_buffers_is_joined() {
    for pieces in [1, 2, 3, 7, 40] {
        with_instance("echo", |server, instance| {
            let request = server
                .request()
                .bytes_input("text", &[1, 2], &["a cat", "on a mat"])
                .buffers(pieces)
                .memory(MemoryType::CpuPinned)
                .output("echoed")
                .output_memory(MemoryType::CpuPinned)
                .build();
            instance.execute(&[&request]).unwrap();
            assert_eq!(echoed(&request), ["a cat", "on a mat"]);
        });
    }
}

#[test]
fn request_id_null_empty_or_invalid_is_accepted() {
    with_instance("echo", |server, instance| {
        let id_of = |builder: RequestBuilder| {
            let request = builder.bytes_input("text", &[1], &["x"]).output("echoed").build();
            instance.execute(&[&request]).unwrap();
            request.wait(SOON).unwrap().parameters["id"].clone()
        };
        let none = ParameterValue::String("none".to_owned());
        assert_eq!(id_of(server.request().null_id()), none);
        assert_eq!(id_of(server.request()), none);
        assert_eq!(id_of(server.request().id("ü")), ParameterValue::String("ü".to_owned()));
    });
}

#[test]
fn bad_input_fails_only_its_request() {
    let bytes = |data: &'static [u8], shape: &'static [i64]| {
        move |builder: RequestBuilder| builder.raw_input("text", DataType::Bytes, shape, data)
    };
    type Change = Box<dyn Fn(RequestBuilder) -> RequestBuilder>;
    let cases: Vec<(Change, ErrorCode, &str)> = vec![
        (
            Box::new(|builder| builder),
            ErrorCode::InvalidArg,
            "model 'm', input 'text': it is missing",
        ),
        (
            Box::new(bytes(&[1, 0, 0], &[1])),
            ErrorCode::InvalidArg,
            "model 'm', input 'text': the length of element 0 is truncated: got 3 of 4 bytes",
        ),
        (
            Box::new(bytes(&[9, 0, 0, 0, b'a'], &[1])),
            ErrorCode::InvalidArg,
            "model 'm', input 'text': element 0 is truncated: expected 9 bytes, got 1",
        ),
        (
            Box::new(bytes(&[1, 0, 0, 0, b'a', 7], &[1])),
            ErrorCode::InvalidArg,
            "model 'm', input 'text': 1 bytes follow the last of 1 elements",
        ),
        (
            Box::new(bytes(&[1, 0, 0, 0, b'a'], &[i64::MAX])),
            ErrorCode::InvalidArg,
            "model 'm', input 'text': expected 9223372036854775807 elements, as in the shape, \
             got 1",
        ),
        (
            Box::new(bytes(&[1, 0, 0, 0, b'a'], &[i64::MAX, 8])),
            ErrorCode::InvalidArg,
            "input 'text': the shape is out of range",
        ),
        (
            Box::new(bytes(&[], &[0])),
            ErrorCode::InvalidArg,
            "model 'm', input 'text': the tensor has no elements",
        ),
        (
            Box::new(bytes(&[], &[1, -1])),
            ErrorCode::InvalidArg,
            "input 'text': the shape is out of range",
        ),
        (
            Box::new(move |builder| builder.bytes_input("text", &[1], &["x".repeat(LIMIT)])),
            ErrorCode::InvalidArg,
            "input 'text': expected at most 1000 bytes, got 1004",
        ),
        (
            Box::new(|builder| builder.bytes_input("text", &[1], &["x"]).claimed_size(u64::MAX)),
            ErrorCode::InvalidArg,
            "input 'text': expected at most 1000 bytes, got 18446744073709551615",
        ),
        (
            Box::new(|builder| builder.bytes_input("text", &[1], &["x"]).claimed_size(4)),
            ErrorCode::Internal,
            "input 'text': the buffers exceed the size of the tensor",
        ),
        (
            Box::new(|builder| builder.bytes_input("text", &[1], &["x"]).claimed_size(6)),
            ErrorCode::Internal,
            "input 'text': the buffers are 1 bytes shorter than the tensor",
        ),
        (
            Box::new(|builder| builder.bytes_input("text", &[1], &["x"]).memory(MemoryType::Gpu)),
            ErrorCode::Unsupported,
            "input 'text': GPU memory is not supported; send the tensor in host memory",
        ),
        (
            Box::new(|builder| builder.bytes_input("text", &[1], &["x"]).output_memory(MemoryType::Gpu)),
            ErrorCode::Unsupported,
            "model 'm': output 'echoed': GPU memory is not supported; request the tensor in host memory",
        ),
        (
            Box::new(|builder| builder.bytes_input("text", &[1], &["x"]).output("wrong")),
            ErrorCode::Internal,
            "model 'm': output 'wrong': the data do not fit the shape",
        ),
    ];
    with_instance("echo", |server, instance| {
        for (change, code, message) in cases {
            let bad = change(server.request()).output("echoed").build();
            let good = text(server, "good");
            instance.execute(&[&bad, &good]).unwrap();
            assert_eq!(error_of(&bad), (code, message.to_owned()));
            assert_eq!(bad.statistics().len(), 1);
            assert!(!bad.statistics()[0].success);
            assert_eq!(echoed(&good), ["good"]);
        }
    });
}

#[test]
fn execute_error_before_accept_leaves_requests_to_triton() {
    with_instance("fail_before_accept", |server, instance| {
        let requests = [text(server, "a"), text(server, "b")];
        let error = instance.execute(&[&requests[0], &requests[1]]).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Unavailable);
        assert_eq!(error.message(), "not now");
        for request in requests {
            assert!(request.statistics().is_empty());
        }
        assert_eq!(instance.ready(), Ok(()));
    });
}

#[test]
fn execute_batch_not_accepted_is_error() {
    with_instance("forget_to_accept", |server, instance| {
        let error = instance.execute(&[&text(server, "a")]).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Internal);
        assert!(error.message().ends_with("the requests were not accepted"));
    });
}

#[test]
fn accept_response_failure_returns_the_batch_to_triton() {
    with_instance("echo", |server, instance| {
        for good in [0, 1] {
            server.fail_response_new(good);
            let requests = [text(server, "a"), text(server, "b")];
            let error = instance.execute(&[&requests[0], &requests[1]]).unwrap_err();
            assert_eq!(error.code(), ErrorCode::Unavailable);
            assert_eq!(error.message(), "model 'm': planned failure of ResponseNew");
            assert_eq!(server.counts().responses, 0);
        }
        let request = text(server, "c");
        instance.execute(&[&request]).unwrap();
        assert_eq!(echoed(&request), ["c"]);
    });
}

#[test]
fn accept_null_request_returns_the_batch_to_triton() {
    with_instance("echo", |server, instance| {
        let error = instance.execute_with_null(&[&text(server, "a")]).unwrap_err();
        assert_eq!(
            error.message(),
            "model 'm': Triton passed a null pointer for the request"
        );
        assert_eq!(error.code(), ErrorCode::Internal);
    });
}

#[test]
fn panic_before_accept_is_error_and_poisons_the_instance() {
    with_instance("panic_before_accept", |server, instance| {
        let error = instance.execute(&[&text(server, "a")]).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Internal);
        assert!(!error.message().contains("secret"), "{error}");
        assert_poisoned(server, instance);
    });
}

#[test]
fn panic_after_accept_answers_all_and_poisons_the_instance() {
    with_instance("panic_after_accept", |server, instance| {
        let requests = [text(server, "a"), text(server, "b"), text(server, "c")];
        assert_eq!(instance.execute(&requests.each_ref()), Ok(()));
        assert_eq!(echoed(&requests[0]), ["a"]);
        for request in &requests[1..] {
            let (code, message) = error_of(request);
            assert_eq!(code, ErrorCode::Internal);
            assert_eq!(message, "model 'm': the request was dropped without a response");
            assert!(!request.statistics()[0].success);
        }
        // The others were not executed.
        assert_eq!(instance.batch_statistics().len(), 1);
        assert_poisoned(server, instance);
    });
}

fn assert_poisoned(server: &FakeServer, instance: &FakeInstance<'_>) {
    let reason = "model 'm', instance 'instance_0': the instance failed and must be \
                  reloaded: a panic in `execute`";
    for error in [
        instance.ready().unwrap_err(),
        instance.execute(&[&text(server, "later")]).unwrap_err(),
    ] {
        assert_eq!(error.code(), ErrorCode::Unavailable);
        assert_eq!(error.message(), reason);
    }
}

#[test]
fn execute_error_after_accept_is_only_logged() {
    with_instance("error_after_accept", |server, instance| {
        let requests = [text(server, "a"), text(server, "b")];
        assert_eq!(instance.execute(&requests.each_ref()), Ok(()));
        assert_eq!(echoed(&requests[0]), ["a"]);
        assert_eq!(error_of(&requests[1]).0, ErrorCode::Internal);
        assert!(
            server
                .logs()
                .iter()
                .any(|log| log.level == "ERROR" && log.message == "after the requests were accepted: too late")
        );
        assert_eq!(instance.ready(), Ok(()));
    });
}

#[test]
fn slot_on_a_thread_is_answered_after_execute_returns() {
    with_instance("thread", |server, instance| {
        let requests = [text(server, "a"), text(server, "b")];
        instance.execute(&requests.each_ref()).unwrap();
        for (request, text) in requests.iter().zip(["a", "b"]) {
            assert!(!request.is_released());
            request.cancel();
            assert_eq!(echoed(request), [text]);
        }
    });
}

#[test]
fn slot_dropped_on_a_thread_is_answered() {
    with_instance("drop_on_thread", |server, instance| {
        let request = text(server, "a");
        instance.execute(&[&request]).unwrap();
        assert!(!request.is_released());
        request.cancel();
        assert_eq!(error_of(&request).0, ErrorCode::Internal);
        assert_eq!(instance.ready(), Ok(()));
    });
}

#[test]
fn finalize_answers_requests_in_flight() {
    with_instance("thread", |server, instance| {
        let requests: Vec<_> = (0..5)
            .map(|index| {
                let request = text(server, &index.to_string());
                instance.execute(&[&request]).unwrap();
                request
            })
            .collect();
        assert!(requests.iter().all(|request| !request.is_released()));
        // Finalizing starts while the requests run; the drop of the instance waits for the thread.
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            requests.iter().for_each(|request| request.cancel());
        });
    });
}

#[test]
fn cancel_while_running_is_visible_to_the_backend() {
    with_instance("until_cancelled", |server, instance| {
        let request = text(server, "a");
        instance.execute(&[&request]).unwrap();
        assert!(request.wait(Duration::from_millis(60)).is_err());
        assert_eq!(instance.ready(), Ok(()));
        request.cancel();
        assert_eq!(error_of(&request).0, ErrorCode::Cancelled);
        assert!(!request.statistics()[0].success);
    });
}

#[test]
fn thread_poisons_the_instance() {
    with_instance("poison_on_thread", |server, instance| {
        let request = text(server, "a");
        instance.execute(&[&request]).unwrap();
        request.wait(SOON).unwrap();
        assert_eq!(
            instance.ready().map_err(|error| error.code()),
            Err(ErrorCode::Unavailable)
        );
        let error = instance.execute(&[&text(server, "b")]).unwrap_err();
        assert!(error.message().ends_with("the thread is lost"));
    });
}

#[test]
fn ready_during_execute_does_not_block() {
    with_instance("echo", |server, instance| {
        std::thread::scope(|scope| {
            scope.spawn(|| (0..200).for_each(|_| assert_eq!(instance.ready(), Ok(()))));
            for index in 0..50 {
                let request = text(server, &index.to_string());
                instance.execute(&[&request]).unwrap();
                assert_eq!(echoed(&request), [index.to_string()]);
            }
        });
    });
}
