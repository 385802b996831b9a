//! A GPU with too little memory.

use serde_json::json;
use triton_api::ErrorCode;
use triton_fake::{FakeInstance, FakeServer};

use super::pretend::{Memory, allocations, fail_allocation, in_own_process, memory, set_limit, start_log, take_log};
use super::support::*;
use crate::support::*;

const MIB: u64 = 1 << 20;

/// Serves a case with its `nth` allocation failing, and returns whether there were as many.
fn serve_with_failure(server: &FakeServer, instance: &FakeInstance<'_>, case: &Case, nth: u64) -> bool {
    let before = allocations();
    fail_allocation(nth);
    let request = request(server, &case.gen_args, &case.inputs);
    instance.execute(&[&request]).unwrap();
    let answer = answer(&request);
    fail_allocation(0);
    let reached = allocations() - before >= nth;
    match answer {
        // A GPU tries a large image again in less memory.
        Ok(_) => assert!(
            !reached || case.checkpoint == "x4_upscaler",
            "allocation {nth} was not needed"
        ),
        Err(error) => {
            assert_eq!(
                error.code(),
                ErrorCode::Unavailable,
                "allocation {nth}: {}",
                error.message()
            );
            assert!(
                error.message().contains("out of memory"),
                "allocation {nth}: {}",
                error.message()
            );
        }
    }
    reached
}

/// Lets every `stride`-th allocation of a request fail.
fn sweep(case: &Case, stride: usize) {
    serve_on(
        on_gpu(0),
        case.checkpoint,
        |spec| spec,
        |server, instance| {
            let expected = serve_pixels(server, instance, case);
            let mut failed = 0;
            for nth in (1..).step_by(stride) {
                if !serve_with_failure(server, instance, case, nth) {
                    break;
                }
                failed += 1;
            }
            println!("{}: {failed} allocations failed", case.name);
            assert!(failed > 20);
            assert!(
                serve_pixels(server, instance, case) == expected,
                "another image after the failures"
            );
        },
    );
    assert_eq!(memory(0, Memory::Used), 0);
}

#[test]
fn failed_allocation_of_a_request_is_out_of_memory() {
    in_own_process(&[], || {
        let mut case = pipelines().swap_remove(0);
        case.gen_args["num_inference_steps"] = 1.into();
        sweep(&case, 1);
    });
}

#[test]
fn failed_allocation_of_any_pipeline_is_out_of_memory() {
    in_own_process(&[], || {
        for mut case in pipelines().into_iter().skip(1) {
            if case.name.contains("channels") || case.name == "upscale" || case.name.starts_with("depth") {
                case.gen_args["num_inference_steps"] = 2.into();
                sweep(&case, 23);
            }
        }
    });
}

#[test]
fn failed_allocation_of_a_load_is_out_of_memory() {
    in_own_process(&[], || {
        let repository = Repository::new();
        let server = server();
        let backend = server.load_backend().unwrap();
        let model = backend.load_model(repository.link("sd_base", "sd2_base")).unwrap();
        for nth in (1..).step_by(7) {
            let before = allocations_of(|| fail_allocation(nth));
            let loaded = model.load_instance(on_gpu(0));
            fail_allocation(0);
            match loaded {
                Ok(instance) => {
                    assert!(allocations() - before < nth, "allocation {nth} was not needed");
                    assert_serves(&server, &instance);
                    break;
                }
                Err(error) => assert!(
                    error.message().contains("out of memory"),
                    "allocation {nth}: {}",
                    error.message()
                ),
            }
            assert_eq!(memory(0, Memory::Used), 0, "allocation {nth}");
        }
        drop(model);
        drop(backend);
        server.assert_clean();
        assert_eq!(memory(0, Memory::Used), 0);
    });
}

/// Returns the number of allocations before `change`.
fn allocations_of(change: impl FnOnce()) -> u64 {
    let before = allocations();
    change();
    before
}

/// The weights fit, but nothing could be computed with them.
#[test]
fn load_without_room_to_work_is_out_of_memory() {
    in_own_process(&[], || {
        let load = |reserve: Option<&'static str>, limit: u64| {
            let repository = Repository::new();
            let server = server();
            let backend = server.load_backend().unwrap();
            set_limit(limit);
            let spec = repository.link("sd_base", "sd2_base");
            let spec = match reserve {
                Some(mib) => spec.parameter("gpu_memory_reserve_mib", mib),
                None => spec,
            };
            let model = backend.load_model(spec).unwrap();
            let loaded = model.load_instance(on_gpu(0));
            loaded.map(drop).map_err(|error| error.message().to_owned())
        };
        let error = load(None, 1024 * MIB).unwrap_err();
        assert_says(&error, &["out of memory", "on GPU 0", "1536 MiB in reserve"]);
        load(None, 2048 * MIB).unwrap();
        load(Some("512"), 1024 * MIB).unwrap();
        let error = load(Some("1023"), 1024 * MIB).unwrap_err();
        assert_says(&error, &["out of memory", "1023 MiB in reserve"]);
    });
}

/// libtorch keeps the memory of earlier images. A load that needs it gets it.
#[test]
fn cached_memory_is_freed_before_a_load_is_refused() {
    in_own_process(&[], || {
        let repository = Repository::new();
        let server = server();
        let backend = server.load_backend().unwrap();
        let spec = |name| {
            repository
                .link(name, "sd2_base")
                .parameter("gpu_memory_reserve_mib", "1")
        };
        let model = backend.load_model(spec("sd_base")).unwrap();
        let first = model.load_instance(on_gpu(0)).unwrap();
        let request = ask(&server, &json!({"num_inference_steps": 1, "width": 256, "height": 256}));
        first.execute(&[&request]).unwrap();
        images(&request);
        let cached = memory(0, Memory::Cached);
        assert!(cached > memory(0, Memory::Used) + 4 * MIB, "{cached}");
        // The other checkpoint has other weights.
        set_limit(cached + MIB);
        let other_model = backend
            .load_model(
                repository
                    .link("sd_base_too", "sd1")
                    .parameter("gpu_memory_reserve_mib", "1"),
            )
            .unwrap();
        start_log();
        let other = other_model.load_instance(on_gpu(0)).unwrap();
        assert!(take_log().iter().any(|line| line == "empty cache"));
        drop((other, first));
        drop((other_model, model));
        drop(backend);
        server.assert_clean();
    });
}

/// A request that is too large fails, and smaller ones after it do not.
#[test]
fn request_beyond_the_memory_is_out_of_memory() {
    in_own_process(&[], || {
        serve_on(
            on_gpu(0),
            "sd2_base",
            |spec| spec.parameter("gpu_memory_reserve_mib", "0"),
            |server, instance| {
                assert_serves(server, instance);
                // A small request has an estimate of 33 MiB.
                set_limit(memory(0, Memory::Peak) + 40 * MIB);
                let large = ask(
                    server,
                    &json!({"num_inference_steps": 1, "width": 1024, "height": 1024}),
                );
                instance.execute(&[&large]).unwrap();
                let (code, message) = refusal(&large);
                assert_eq!(code, ErrorCode::Unavailable);
                assert!(message.contains("out of memory"), "{message}");
                assert_serves(server, instance);
            },
        );
    });
}
