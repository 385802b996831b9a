//! Failures inside the backend, armed by the test.

use std::time::Instant;

use diffusion_core::failpoint::{FailPoint, Fault, arm};
use serde_json::json;
use triton_api::ErrorCode;
use triton_fake::{FakeInstance, FakeRequest, FakeServer, InstanceSpec, execute_from_shared_queue};

use crate::support::*;

/// Runs `test`, whose panic makes an instance start anew, while an instance of another model must go on.
fn next_to_another(test: impl FnOnce(&FakeServer, &FakeInstance<'_>)) {
    let repository = Repository::new();
    let server = server();
    let backend = server.load_backend().unwrap();
    let model = backend.load_model(repository.link("sd_base", "sd2_base")).unwrap();
    let other_model = backend.load_model(repository.link("sd_base_too", "sd1")).unwrap();
    let instance = model.load_instance(InstanceSpec::default()).unwrap();
    let other = other_model.load_instance(InstanceSpec::default()).unwrap();
    let before = ask(&server, &good_args());
    other.execute(&[&before]).unwrap();
    // Done before `test` arms a failure, because the first request in the process gets it.
    let expected = images(&before);

    test(&server, &instance);

    assert_eq!(instance.ready(), Ok(()));
    assert_serves(&server, &instance);
    assert_eq!(counter(&server, "restarts"), 1.0);
    instance.finalize().unwrap();

    let after = ask(&server, &good_args());
    other.execute(&[&after]).unwrap();
    assert!(images(&after) == expected, "another image");
    // The model itself is whole: a new instance works.
    let again = model.load_instance(InstanceSpec::default()).unwrap();
    assert_serves(&server, &again);
    drop(again);
    drop(other);
    drop(other_model);
    drop(model);
    drop(backend);
    let logs = server.logs();
    let logged = |text: &str| {
        logs.iter()
            .any(|line| line.level == "ERROR" && line.message.contains(text))
    };
    assert!(logged("armed panic"), "the log says what panicked");
    assert!(logged("starts anew after a panic"));
    server.assert_clean();
}

fn assert_failed(request: &FakeRequest, code: ErrorCode) {
    let (found, message) = refusal(request);
    assert_eq!(found, code, "{message}");
    assert!(!message.contains("armed"), "a panic's words stay in the log: {message}");
}

#[test]
fn panic_in_prepare_restarts_the_instance() {
    next_to_another(|server, instance| {
        let running = endless(server, 64);
        instance.execute(&[&running]).unwrap();
        wait_for_calls(server, 2);
        arm(FailPoint::Prepare, Fault::Panic);
        let batch = [(); 4].map(|()| ask(server, &good_args()));
        instance.execute(&batch.each_ref()).unwrap();
        assert_failed(&batch[0], ErrorCode::Internal);
        assert_failed(&running, ErrorCode::Unavailable);
        // They waited, and the restart did not touch them.
        let first = images(&batch[1]);
        assert!(batch[2..].iter().all(|request| images(request) == first));
    });
}

#[test]
fn panic_in_step_restarts_the_instance() {
    next_to_another(|server, instance| {
        let [first, neighbor] = [(); 2].map(|()| endless(server, 64));
        let other_size = endless(server, 72);
        instance.execute(&[&first, &neighbor, &other_size]).unwrap();
        wait_for_calls(server, 6);
        arm(FailPoint::Step, Fault::Panic);
        let codes = [&first, &neighbor, &other_size].map(|request| refusal(request).0);
        // Whichever call it was: its jobs failed and the others were given up.
        let (internal, unavailable) = (ErrorCode::Internal, ErrorCode::Unavailable);
        let possible = [[internal, internal, unavailable], [unavailable, unavailable, internal]];
        assert!(possible.contains(&codes), "{codes:?}");
    });
}

#[test]
fn panic_in_finish_restarts_the_instance() {
    next_to_another(|server, instance| {
        let running = endless(server, 64);
        instance.execute(&[&running]).unwrap();
        wait_for_calls(server, 2);
        arm(FailPoint::Finish, Fault::Panic);
        let short = ask(server, &good_args());
        instance.execute(&[&short]).unwrap();
        assert_failed(&short, ErrorCode::Internal);
        assert_failed(&running, ErrorCode::Unavailable);
    });
}

/// One response for the request, although two of its elements are in flight when the first fails.
#[test]
fn panic_with_several_elements_answers_once() {
    next_to_another(|server, instance| {
        let args = long_args();
        let request = infer_elements(server, &["a", "b", "c"], &[args.clone(), args.clone(), args]);
        instance.execute(&[&request]).unwrap();
        wait_for_calls(server, 3);
        arm(FailPoint::Step, Fault::Panic);
        assert_failed(&request, ErrorCode::Internal);
    });
}

#[test]
fn panic_leaves_a_request_that_waits_as_it_is() {
    serve_as(
        |spec| spec.parameter("max_unet_batch_size", "2"),
        |server, instance| {
            let (running, waiting) = (endless(server, 64), ask(server, &good_args()));
            instance.execute(&[&running]).unwrap();
            wait_for_calls(server, 1);
            instance.execute(&[&waiting]).unwrap();
            wait_for_calls(server, 2);
            arm(FailPoint::Step, Fault::Panic);
            assert_failed(&running, ErrorCode::Internal);
            assert_eq!(images(&waiting).len(), 1);
        },
    );
}

#[test]
fn panics_that_follow_on_each_other_fail_the_instance() {
    let repository = Repository::new();
    let server = server();
    let backend = server.load_backend().unwrap();
    let model = backend.load_model(repository.link("sd_base", "sd2_base")).unwrap();
    let instance = model.load_instance(InstanceSpec::default()).unwrap();
    for _ in 0..3 {
        assert_eq!(instance.ready(), Ok(()));
        arm(FailPoint::Step, Fault::Panic);
        let request = ask(&server, &good_args());
        instance.execute(&[&request]).unwrap();
        assert_failed(&request, ErrorCode::Internal);
    }
    // At once: nobody is answered before the instance says that it cannot work.
    assert_eq!(instance.ready().unwrap_err().code(), ErrorCode::Unavailable);
    let late = ask(&server, &good_args());
    // Refused before it was accepted: the server answers it.
    assert_eq!(instance.execute(&[&late]).unwrap_err().code(), ErrorCode::Unavailable);
    assert_eq!(late.final_responses(), 1);
    instance.finalize().unwrap();
    // The model itself is whole: a new instance works.
    let again = model.load_instance(InstanceSpec::default()).unwrap();
    assert_serves(&server, &again);
    drop(again);
    drop(model);
    drop(backend);
    let logs = server.logs();
    assert!(logs.iter().any(|line| line.message.contains("can no longer work")));
    server.assert_clean();
}

/// Triton gives an instance that fails at once more requests than those that work.
#[test]
fn failed_instance_passes_requests_on_to_one_that_works() {
    let repository = Repository::new();
    let server = server();
    let backend = server.load_backend().unwrap();
    let model = backend.load_model(repository.link("sd_base", "sd2_base")).unwrap();
    let named = |name: &str| InstanceSpec {
        name: name.to_owned(),
        ..InstanceSpec::default()
    };
    let fails = model.load_instance(named("fails")).unwrap();
    let works = model.load_instance(named("works")).unwrap();
    for _ in 0..3 {
        arm(FailPoint::Step, Fault::Panic);
        let request = ask(&server, &good_args());
        fails.execute(&[&request]).unwrap();
        assert_failed(&request, ErrorCode::Internal);
    }
    assert!(fails.ready().is_err());
    assert_eq!(works.ready(), Ok(()));
    assert_serves(&server, &works);
    let requests: Vec<FakeRequest> = (0..10).map(|_| ask(&server, &good_args())).collect();
    execute_from_shared_queue(&[&fails, &works], &requests);
    for request in &requests {
        assert_eq!(images(request).len(), 1);
    }
    works.finalize().unwrap();
    let late = ask(&server, &good_args());
    assert_eq!(fails.execute(&[&late]).unwrap_err().code(), ErrorCode::Unavailable);
    fails.finalize().unwrap();
    drop(model);
    drop(backend);
    server.assert_clean();
}

#[test]
fn out_of_memory_fails_only_the_request() {
    serve(|server, instance| {
        for point in [FailPoint::Prepare, FailPoint::Step, FailPoint::Finish] {
            arm(point, Fault::OutOfMemory);
            let request = ask(server, &good_args());
            instance.execute(&[&request]).unwrap();
            let (code, message) = refusal(&request);
            assert_eq!(code, ErrorCode::Unavailable, "{point:?}: {message}");
            assert_says(&message, &["out of memory"]);
            assert_serves(server, instance);
        }
    });
}

#[test]
fn out_of_memory_of_one_element_fails_its_request() {
    serve(|server, instance| {
        for point in [FailPoint::Prepare, FailPoint::Finish] {
            arm(point, Fault::OutOfMemory);
            let request = infer_elements(server, &["a", "b", "c"], &[good_args(), good_args(), good_args()]);
            instance.execute(&[&request]).unwrap();
            let (code, message) = refusal(&request);
            assert_eq!(code, ErrorCode::Unavailable, "{point:?}: {message}");
            assert_says(&message, &["out of memory"]);
            assert_serves(server, instance);
        }
    });
}

#[test]
fn shared_step_out_of_memory_is_retried_one_by_one() {
    serve(|server, instance| {
        let args = [1, 2].map(|seed| json!({"num_inference_steps": 100, "seed": seed}));
        let run = |arm_fault: bool| {
            let requests = args.each_ref().map(|args| ask(server, args));
            let start = counter(server, "unet_calls");
            instance.execute(&requests.each_ref()).unwrap();
            wait_for_calls(server, 3);
            if arm_fault {
                arm(FailPoint::Step, Fault::OutOfMemory);
            }
            let images = requests.each_ref().map(images);
            (images, counter(server, "unet_calls") - start)
        };
        let (expected, calls) = run(false);
        let (found, calls_with_fault) = run(true);
        assert_eq!(found, expected);
        // 101 steps each, shared but for the first ones, which one job may have taken alone.
        assert!((101.0..180.0).contains(&calls), "{calls}");
        assert!((102.0..180.0).contains(&calls_with_fault), "{calls_with_fault}");
        // The armed failure has happened: it does not hit this request.
        assert_serves(server, instance);
    });
}

#[test]
fn single_step_out_of_memory_fails_only_its_job() {
    serve(|server, instance| {
        let args = [1, 2].map(|seed| json!({"num_inference_steps": 100, "seed": seed}));
        let requests = args.each_ref().map(|args| ask(server, args));
        instance.execute(&requests.each_ref()).unwrap();
        wait_for_calls(server, 3);
        // While both are running: the first is for the call of both, the second for one of them. They share their calls,
        // since the engine has not seen yet what a call of one takes.
        arm(FailPoint::Step, Fault::OutOfMemory);
        arm(FailPoint::Step, Fault::OutOfMemory);
        let (code, message) = refusal(&requests[0]);
        assert_eq!(code, ErrorCode::Unavailable, "{message}");
        assert_says(&message, &["out of memory"]);
        let found = images(&requests[1]);
        let alone = ask(server, &args[1]);
        instance.execute(&[&alone]).unwrap();
        assert!(images(&alone) == found, "another image");
        assert_serves(server, instance);
    });
}

#[test]
fn load_out_of_memory_can_be_retried() {
    let repository = Repository::new();
    let spec = repository.link("sd_base", "sd2_base");
    let server = server();
    let backend = server.load_backend().unwrap();
    let model = backend.load_model(spec).unwrap();
    arm(FailPoint::Load, Fault::OutOfMemory);
    let error = model.load_instance(InstanceSpec::default()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable);
    assert_says(error.message(), &["sd_base", "out of memory"]);
    let instance = model.load_instance(InstanceSpec::default()).unwrap();
    assert_serves(&server, &instance);
    drop(instance);
    drop(model);
    drop(backend);
    server.assert_clean();
}

#[test]
fn load_panic_can_be_retried() {
    let repository = Repository::new();
    let server = server();
    let backend = server.load_backend().unwrap();
    let model = backend.load_model(repository.link("sd_base", "sd2_base")).unwrap();
    arm(FailPoint::Load, Fault::Panic);
    let start = Instant::now();
    let error = model.load_instance(InstanceSpec::default()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Internal, "{error} after {:?}", start.elapsed());
    let instance = model.load_instance(InstanceSpec::default()).unwrap();
    assert_serves(&server, &instance);
    drop(instance);
    drop(model);
    drop(backend);
    server.assert_clean();
}
