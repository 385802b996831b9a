//! Requests that are given up, by their client or by the server.

use std::time::Duration;

use serde_json::json;
use triton_api::ErrorCode;
use triton_fake::{FakeInstance, FakeRequest, FakeServer, InstanceSpec, ParameterValue};

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
    instance.execute(&[&running]).unwrap();
    wait_for_calls(server, 2);
    let waiting = endless(server, 64);
    std::thread::scope(|scope| {
        let execute = scope.spawn(|| instance.execute(&[&waiting]));
        std::thread::sleep(Duration::from_millis(100));
        let waits = !execute.is_finished();
        waiting.cancel();
        assert!(waits, "Execute waits while the engine is full");
        assert_cancelled(server, &waiting);
        assert_eq!(execute.join().unwrap(), Ok(()));
    });
    assert!(!running.is_released());
    running.cancel();
    assert_cancelled(server, &running);
    assert_serves(server, instance);
}

#[test]
fn cancel_while_waiting_for_capacity_returns() {
    serve_as(
        |spec| spec.parameter("max_unet_batch_size", "2"),
        cancelled_in_a_full_engine,
    );
}

/// Loads, hands `requests` over, finalizes once `ready`, and wants each answered: with an image
/// or with UNAVAILABLE. Returns how many got an image.
fn unload_with(ask: impl Fn(&FakeServer) -> Vec<FakeRequest>, ready: impl Fn(&FakeServer)) -> (usize, usize) {
    let repository = Repository::new();
    let server = server();
    let backend = server.load_backend().unwrap();
    let model = backend.load_model(repository.link("sd_base", "sd2_base")).unwrap();
    let instance = model.load_instance(InstanceSpec::default()).unwrap();
    let requests = ask(&server);
    instance.execute(&requests.iter().collect::<Vec<_>>()).unwrap();
    ready(&server);
    let start = counter(&server, "unet_calls");
    instance.finalize().unwrap();
    let calls = counter(&server, "unet_calls") - start;
    assert!(calls < FEW_CALLS, "{calls} UNet calls");
    // Finalize waits for the answers: nothing may come after it.
    assert!(requests.iter().all(|request| request.is_released()));
    let served = requests.iter().filter(|request| match answer(request) {
        Ok(response) => {
            assert_eq!(response.outputs[OUTPUT].shape, [1, 1]);
            true
        }
        Err(error) => {
            assert_eq!(error.code(), ErrorCode::Unavailable);
            assert_says(error.message(), &["sd_base", "unloaded"]);
            false
        }
    });
    let served = served.count();
    drop(model);
    drop(backend);
    server.assert_clean();
    (served, requests.len())
}

#[test]
fn unload_while_running_answers_all_requests() {
    let long = |server: &FakeServer| [64, 72, 64, 80].map(|height| endless(server, height)).to_vec();
    let outcome = unload_with(long, |server| wait_for_calls(server, 4));
    assert_eq!(outcome, (0, 4), "nobody waits for a thousand steps");
}

#[test]
fn unload_at_once_answers_all_requests() {
    let long = |server: &FakeServer| vec![endless(server, 64), endless(server, 64)];
    assert_eq!(unload_with(long, |_| ()), (0, 2));
}

/// At whatever point of its life a request is when the instance goes.
#[test]
fn unload_at_any_moment_answers_all_requests() {
    let short = |server: &FakeServer| vec![ask(server, &good_args()), ask(server, &good_args())];
    for milliseconds in [0, 5, 10, 20, 30, 40, 60, 80] {
        let delay = Duration::from_millis(milliseconds);
        unload_with(short, |_| std::thread::sleep(delay));
    }
    let (served, _) = unload_with(short, |server| {
        wait_until("an image is made", || counter(server, "images") > 0.0);
    });
    assert!(served > 0, "what is made is sent");
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
    backend.finalize().unwrap();
    server.assert_clean();
}
