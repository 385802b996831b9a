//! Finding CUDA and its devices.

use serde_json::json;
use triton_fake::InstanceSpec;

use super::pretend::{Failure, arm, in_own_process};
use super::support::*;
use crate::support::*;

/// libtorch asks once whether CUDA is there, at the first convolution at the latest.
#[test]
fn model_on_the_cpu_before_does_not_disable_the_gpu() {
    in_own_process(&[], || {
        serve_on(
            InstanceSpec::default(),
            "sd2_base",
            |spec| spec,
            |server, instance| {
                assert_serves(server, instance);
            },
        );
        serve_on(on_gpu(0), "sd2_base", |spec| spec, assert_serves);
    });
}

/// Loads a model onto a GPU and returns the error.
fn load_error(index: i32) -> String {
    let repository = Repository::new();
    let server = server();
    let backend = server.load_backend().unwrap();
    let model = backend.load_model(repository.link("sd_base", "sd2_base")).unwrap();
    let error = model.load_instance(on_gpu(index)).err().unwrap();
    error.message().to_owned()
}

#[test]
fn no_gpu_is_an_error_with_the_reason() {
    let reason = "CUDA driver version is insufficient for CUDA runtime version";
    in_own_process(&[("PRETEND_DEVICES", "0"), ("PRETEND_NO_DEVICE", reason)], || {
        assert_says(
            &load_error(0),
            &[
                "GPU 0 does not exist; CUDA shows 0 devices",
                "CUDA driver version is insufficient",
                "the driver supports no CUDA",
                "libtorch needs CUDA 13.",
            ],
        );
    });
}

#[test]
fn gpu_beyond_the_last_is_an_error() {
    in_own_process(&[], || {
        assert_says(&load_error(3), &["GPU 3 does not exist; CUDA shows 1 devices"]);
    });
}

/// A GPU that the library has no kernels for loads weights, and then fails in every request.
#[test]
fn gpu_that_cannot_compute_fails_the_load() {
    in_own_process(&[], || {
        serve_on(InstanceSpec::default(), "sd2_base", |spec| spec, |_, _| {});
        arm(&Failure {
            allocation: false,
            nth: 50,
            text: "CUDA error: no kernel image is available for execution on the device",
            counts: false,
            fatal: false,
        });
        assert_says(&load_error(0), &["self-test", "GPU 0", "no kernel image is available"]);
        // The failure was that of one call.
        serve_on(
            on_gpu(0),
            "sd2_base",
            |spec| spec,
            |server, instance| {
                let request = ask(server, &json!({"num_inference_steps": 1}));
                instance.execute(&[&request]).unwrap();
                assert_eq!(images(&request).len(), 1);
            },
        );
    });
}
