//! What must follow from the errors of a GPU.

use serde_json::json;
use triton_api::ErrorCode;
use triton_fake::{FakeInstance, FakeServer, InstanceSpec};

use super::pretend::{Failure, Memory, arm, in_own_process, memory};
use super::support::*;
use crate::support::*;

const ILLEGAL_ADDRESS: &str = "CUDA error: an illegal memory access was encountered";
/// The error of cuDNN when no plan of a convolution got its workspace, among other causes.
const NO_PLAN: &str = "GET was unable to find an engine to execute this computation";
/// The error of the allocator on a MIG slice in a container, where it cannot make its usual message.
const NVML: &str = "NVML_SUCCESS == r INTERNAL ASSERT FAILED at \"/pytorch/c10/cuda/CUDACachingAllocator.cpp\":1165";

/// Arms a failure in the middle of a request, and returns the answer. The next request must be served.
fn answer_with(server: &FakeServer, instance: &FakeInstance<'_>, failure: &Failure<'_>) -> (ErrorCode, String) {
    arm(failure);
    let request = ask(server, &good_args());
    instance.execute(&[&request]).unwrap();
    let refused = refusal(&request);
    assert_serves(server, instance);
    refused
}

#[test]
fn text_of_nvml_is_out_of_memory() {
    in_own_process(&[], || {
        serve_on(
            on_gpu(0),
            "sd2_base",
            |spec| spec,
            |server, instance| {
                let failure = Failure {
                    allocation: true,
                    nth: 300,
                    text: NVML,
                    counts: false,
                    fatal: false,
                };
                let (code, message) = answer_with(server, instance, &failure);
                assert_eq!(code, ErrorCode::Unavailable);
                assert!(message.contains("out of memory"), "{message}");
            },
        );
    });
}

#[test]
fn plan_without_an_engine_is_out_of_memory_only_if_the_allocator_was() {
    in_own_process(&[], || {
        serve_on(
            on_gpu(0),
            "sd2_base",
            |spec| spec,
            |server, instance| {
                for text in [
                    NO_PLAN,
                    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
                ] {
                    for counts in [true, false] {
                        let failure = Failure {
                            allocation: false,
                            nth: 400,
                            text,
                            counts,
                            fatal: false,
                        };
                        let (code, message) = answer_with(server, instance, &failure);
                        let expected = if counts {
                            ErrorCode::Unavailable
                        } else {
                            ErrorCode::Internal
                        };
                        assert_eq!(code, expected, "{message}");
                        assert_eq!(message.contains("out of memory"), counts, "{message}");
                    }
                }
            },
        );
    });
}

/// Loses the GPU of two instances in the `nth` operator of a request.
fn lose_the_gpu(nth: u64) {
    let repository = Repository::new();
    let server = server();
    let backend = server.load_backend().unwrap();
    let model = backend.load_model(repository.link("sd_base", "sd2_base")).unwrap();
    let other_model = backend.load_model(repository.link("sd_base_too", "sd1")).unwrap();
    let instance = model.load_instance(on_gpu(0)).unwrap();
    let other = other_model.load_instance(on_gpu(0)).unwrap();
    let on_the_cpu = other_model.load_instance(InstanceSpec::default()).unwrap();
    // A buffer of pinned memory is in use, which libtorch asks the GPU about when it is freed.
    assert_serves(&server, &instance);
    assert_serves(&server, &other);

    arm(&Failure {
        allocation: false,
        nth,
        text: ILLEGAL_ADDRESS,
        counts: false,
        fatal: true,
    });
    let request = ask(&server, &json!({"num_inference_steps": 3}));
    let waiting = ask(&server, &json!({"num_inference_steps": 90}));
    instance.execute(&[&request, &waiting]).unwrap();
    for request in [&request, &waiting] {
        let (code, message) = refusal(request);
        assert_eq!(code, ErrorCode::Unavailable, "{message}");
        assert!(!message.contains("out of memory"), "{message}");
    }
    for instance in [&instance, &other] {
        let error = instance.ready().unwrap_err();
        assert_eq!(error.code(), ErrorCode::Unavailable);
        assert!(error.message().contains("GPU 0 failed"), "{}", error.message());
    }
    // The rest of the server goes on, and says why the GPU cannot be used.
    assert_serves(&server, &on_the_cpu);
    let error = other_model.load_instance(on_gpu(0)).err().unwrap();
    assert!(error.message().contains("gpu0 failed before"), "{}", error.message());
    // Unloading frees what a lost GPU holds, and must not end the process.
    instance.finalize().unwrap();
    other.finalize().unwrap();
    drop(model);
    assert_serves(&server, &on_the_cpu);
    drop(on_the_cpu);
    drop(other_model);
    drop(backend);
    server.assert_clean();
    assert_eq!(memory(0, Memory::Used), 0);
}

#[test]
fn lost_gpu_in_prepare_makes_its_instances_not_ready() {
    in_own_process(&[], || lose_the_gpu(5));
}

#[test]
fn lost_gpu_in_a_step_makes_its_instances_not_ready() {
    in_own_process(&[], || lose_the_gpu(700));
}

#[test]
fn lost_gpu_in_finish_makes_its_instances_not_ready() {
    in_own_process(&[], || lose_the_gpu(2300));
}
