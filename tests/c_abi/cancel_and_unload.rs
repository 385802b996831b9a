//! Requests that are given up, by their client or by the server.

use std::time::Duration;

use serde_json::json;
use triton_api::ErrorCode;
use triton_fake::{FakeInstance, FakeRequest, FakeServer, InstanceSpec, ModelSpec, ParameterValue};

use crate::support::*;

/// UNet calls that may run until a cancelled request is answered; its requested steps are ten times as many. A count does
/// not depend on the load of the machine, as a time does.
const FEW_CALLS: f64 = 100.0;

fn assert_cancelled(server: &FakeServer, request: &FakeRequest) {
    let start = counter(server, "unet_calls");
    let (code, message) = refusal(request);
    let calls = counter(server, "unet_calls") - start;
    assert_eq!(code, ErrorCode::Cancelled, "{message}");
    assert!(calls < FEW_CALLS, "{calls} UNet calls");
    let parameters = &request.responses()[0].parameters;
    assert_eq!(parameters["cancelled"], ParameterValue::Bool(true));
}

#[test]
fn cancel_before_start_makes_no_unet_call() {
    serve(|server, instance| {
        let request = good_inputs(server.request()).cancelled().build();
        instance.execute(&[&request]).unwrap();
        assert_cancelled(server, &request);
        assert_eq!(counter(server, "unet_calls"), 0.0);
        assert_eq!(counter(server, "jobs_cancelled"), 1.0);
        assert!(instance.batch_statistics().is_empty(), "nothing was executed");
        assert_serves(server, instance);
    });
}

#[test]
fn cancel_while_running_keeps_other_requests() {
    serve(|server, instance| {
        let cancelled = endless(server, 64);
        let neighbor = ask(server, &json!({"num_inference_steps": 60, "seed": 1}));
        instance.execute(&[&cancelled, &neighbor]).unwrap();
        wait_for_calls(server, 3);
        assert!(!cancelled.is_released());
        cancelled.cancel();
        assert_cancelled(server, &cancelled);
        assert_eq!(images(&neighbor).len(), 1);
        assert_eq!(counter(server, "jobs_cancelled"), 1.0);
        assert_serves(server, instance);
    });
}

#[test]
fn cancel_stops_all_elements_of_a_request() {
    serve(|server, instance| {
        let args = long_args();
        let request = infer_elements(server, &["a", "b", "c"], &[args.clone(), args.clone(), args]);
        instance.execute(&[&request]).unwrap();
        wait_for_calls(server, 3);
        request.cancel();
        assert_cancelled(server, &request);
        assert_serves(server, instance);
        // Nothing of it goes on: the elements that are left would step, too.
        let calls = counter(server, "unet_calls");
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(counter(server, "unet_calls"), calls);
    });
}

fn cancelled_in_a_full_engine(server: &FakeServer, instance: &FakeInstance<'_>) {
    let running = endless(server, 64);
    let waiting = endless(server, 64);
    instance.execute(&[&running]).unwrap();
    wait_for_calls(server, 1);
    instance.execute(&[&waiting]).unwrap();
    wait_for_calls(server, 2);
    waiting.cancel();
    assert_cancelled(server, &waiting);
    assert!(!running.is_released());
    running.cancel();
    assert_cancelled(server, &running);
    assert_serves(server, instance);
}

#[test]
fn cancel_while_waiting_for_room_returns() {
    serve_as(
        |spec| spec.parameter("max_unet_batch_size", "2"),
        cancelled_in_a_full_engine,
    );
}

/// Execute waits while the instance's queue is full.
#[test]
fn cancel_while_execute_waits_returns() {
    let small = |spec: ModelSpec| {
        let spec = spec.parameter("max_unet_batch_size", "2");
        spec.parameter("max_waiting_requests", "1")
    };
    serve_as(small, |server, instance| {
        let requests = [(); 3].map(|()| endless(server, 64));
        instance.execute(&[&requests[0]]).unwrap();
        wait_for_calls(server, 2);
        instance.execute(&[&requests[1]]).unwrap();
        std::thread::scope(|scope| {
            let execute = scope.spawn(|| instance.execute(&[&requests[2]]));
            std::thread::sleep(Duration::from_millis(100));
            assert!(!execute.is_finished(), "Execute waits while the queue is full");
            requests[2].cancel();
            assert_cancelled(server, &requests[2]);
            assert_eq!(execute.join().unwrap(), Ok(()));
        });
        for request in &requests[..2] {
            request.cancel();
            assert!(answer(request).is_err());
        }
        assert_serves(server, instance);
    });
}

/// A wide request waits for room, and a short one passes it.
#[test]
fn short_request_passes_a_wide_one_that_waits() {
    serve_as(
        |spec| spec.parameter("max_unet_batch_size", "4"),
        |server, instance| {
            let long = endless(server, 64);
            let wide = ask(
                server,
                &json!({"num_images_per_prompt": 2, "num_inference_steps": 20, "seed": 1}),
            );
            instance.execute(&[&long]).unwrap();
            wait_for_calls(server, 2);
            instance.execute(&[&wide]).unwrap();
            assert_serves(server, instance);
            assert!(!wide.is_released() && !long.is_released());
            long.cancel();
            assert!(answer(&long).is_err());
            assert!(answer(&wide).is_ok());
        },
    );
}

/// The time limit of `gen_args`, of Triton's request and of the model.
#[test]
fn deadline_ends_a_request_that_runs() {
    let mut args = long_args();
    args["timeout_ms"] = 150.into();
    let of_client = |server: &FakeServer| ask(server, &args);
    let of_triton = |server: &FakeServer| {
        let builder = server.request().timeout(Duration::from_millis(150));
        let builder = builder.bytes_input("prompt", &[1, 1], &["a red cat"]);
        builder
            .bytes_input("gen_args", &[1, 1], &[long_args().to_string()])
            .output(OUTPUT)
            .build()
    };
    let of_model = |server: &FakeServer| endless(server, 64);
    type Ask<'a> = &'a dyn Fn(&FakeServer) -> FakeRequest;
    let cases: [(Ask<'_>, &str, &str); 3] = [
        (&of_client, "86400", "0.150 s"),
        (&of_triton, "86400", "0.150 s"),
        (&of_model, "1", "1.000 s"),
    ];
    for (ask, max_seconds, limit) in cases {
        serve_as(
            |spec| spec.parameter("max_seconds", max_seconds),
            |server, instance| {
                let request = ask(server);
                instance.execute(&[&request]).unwrap();
                let (code, message) = refusal(&request);
                assert_eq!(code, ErrorCode::Unavailable, "{message}");
                assert_says(&message, &["the time limit of ", limit, " UNet calls"]);
                assert_eq!(counter(server, "deadlines_passed"), 1.0);
                assert_eq!(counter(server, "jobs_cancelled"), 0.0);
                assert_serves(server, instance);
            },
        );
    }
}

#[test]
fn deadline_ends_a_request_that_waits() {
    serve_as(
        |spec| spec.parameter("max_unet_batch_size", "2"),
        |server, instance| {
            let running = endless(server, 64);
            let waiting = ask(server, &json!({"num_inference_steps": 2, "timeout_ms": 100}));
            instance.execute(&[&running]).unwrap();
            wait_for_calls(server, 1);
            instance.execute(&[&waiting]).unwrap();
            let (code, message) = refusal(&waiting);
            assert_eq!(code, ErrorCode::Unavailable, "{message}");
            assert_says(&message, &["0.100 s passed while the request waited"]);
            running.cancel();
            assert!(answer(&running).is_err());
            assert_serves(server, instance);
        },
    );
}

/// Triton reports the time before as queue time.
#[test]
fn work_on_a_request_that_waits_begins_when_it_starts() {
    serve_as(
        |spec| spec.parameter("max_unet_batch_size", "2"),
        |server, instance| {
            let (running, waiting) = (endless(server, 64), ask(server, &good_args()));
            instance.execute(&[&running]).unwrap();
            // Of two that come together, the one of less work would start.
            wait_for_calls(server, 2);
            instance.execute(&[&waiting]).unwrap();
            wait_for_calls(server, 5);
            let waits = triton_api::steady_clock_ns();
            running.cancel();
            assert!(answer(&running).is_err());
            assert!(answer(&waiting).is_ok());
            assert!(running.statistics()[0].times.exec_start < waits);
            assert!(waiting.statistics()[0].times.exec_start > waits);
        },
    );
}

/// Loads, hands `requests` over, and finalizes once `ready`, as Triton does with an instance that a new configuration no
/// longer has. Every request gets its image.
fn remove_with(ask: impl Fn(&FakeServer) -> Vec<FakeRequest>, ready: impl Fn(&FakeServer)) {
    let repository = Repository::new();
    let server = server();
    let backend = server.load_backend().unwrap();
    let model = backend.load_model(repository.link("sd_base", "sd2_base")).unwrap();
    let instance = model.load_instance(InstanceSpec::default()).unwrap();
    let requests = ask(&server);
    instance.execute(&requests.iter().collect::<Vec<_>>()).unwrap();
    ready(&server);
    instance.finalize().unwrap();
    // Finalize waits for the answers: nothing may come after it.
    assert!(requests.iter().all(|request| request.is_released()));
    for request in &requests {
        assert_eq!(answer(request).unwrap().outputs[OUTPUT].shape, [1, 1]);
    }
    drop(model);
    drop(backend);
    server.assert_clean();
}

#[test]
fn removed_instance_computes_what_runs_and_what_waits() {
    let requests = |server: &FakeServer| {
        let args = |height: u32| json!({"num_inference_steps": 30, "height": height, "seed": 1});
        (0..12)
            .map(|index| ask(server, &args([64, 72, 80][index % 3])))
            .collect()
    };
    remove_with(requests, |server| wait_for_calls(server, 4));
}

/// At whatever point of its life a request is when the instance goes.
#[test]
fn instance_removed_at_any_moment_answers_all_requests() {
    let short = |server: &FakeServer| vec![ask(server, &good_args()), ask(server, &good_args())];
    for milliseconds in [0, 5, 10, 20, 30, 40, 60, 80] {
        let delay = Duration::from_millis(milliseconds);
        remove_with(short, |_| std::thread::sleep(delay));
    }
    remove_with(short, |server| {
        wait_until("an image is made", || counter(server, "images") > 0.0);
    });
}

#[test]
fn load_and_unload_repeatedly_serves() {
    let repository = Repository::new();
    let spec = repository.link("sd_base", "sd2_base");
    let server = server();
    let backend = server.load_backend().unwrap();
    for _ in 0..5 {
        let model = backend.load_model(spec.clone()).unwrap();
        let instance = model.load_instance(InstanceSpec::default()).unwrap();
        assert_serves(&server, &instance);
        instance.finalize().unwrap();
        model.finalize().unwrap();
    }
    assert_eq!(counter(&server, "images"), 5.0, "the counters go on after a reload");
    backend.finalize().unwrap();
    server.assert_clean();
}
