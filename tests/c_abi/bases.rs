//! Models with one base, which share its engine.

use diffusion_core::failpoint::{FailPoint, Fault, arm};
use serde_json::json;
use triton_api::ErrorCode;
use triton_fake::{FakeInstance, FakeServer, InstanceSpec};

use crate::support::*;

/// Loads a model and two more with it as their base, and one of the same checkpoint without a base.
fn serve_four(test: impl FnOnce(&FakeServer, [FakeInstance<'_>; 4])) {
    let repository = Repository::new();
    let server = server();
    let backend = server.load_backend().unwrap();
    let base = |name: &str| repository.empty(name).parameter("base", "sd_base");
    let specs = [
        ("sd_base", repository.link("sd_base", "sd2_base")),
        ("first", base("first")),
        ("second", base("second")),
        ("apart", repository.link("apart", "sd2_base")),
    ];
    let models = specs.map(|(name, spec)| (name, backend.load_model(spec).unwrap()));
    let instances = models.each_ref().map(|(name, model)| {
        let spec = InstanceSpec {
            name: format!("{name}_0"),
            ..InstanceSpec::default()
        };
        model.load_instance(spec).unwrap()
    });
    test(&server, instances);
    drop(models);
    drop(backend);
    server.assert_clean();
}

#[test]
fn engine_that_fails_fails_all_its_models_and_no_other() {
    serve_four(|server, instances| {
        let [base, first, second, apart] = &instances;
        for instance in [first, base, second] {
            assert_serves(server, instance);
        }
        for instance in [first, second, first] {
            arm(FailPoint::Step, Fault::Panic);
            let request = ask(server, &good_args());
            instance.execute(&[&request]).unwrap();
            assert_eq!(answer(&request).unwrap_err().code(), ErrorCode::Internal);
        }
        for instance in [base, first, second] {
            assert_eq!(instance.ready().unwrap_err().code(), ErrorCode::Unavailable);
            let late = ask(server, &good_args());
            assert_eq!(instance.execute(&[&late]).unwrap_err().code(), ErrorCode::Unavailable);
        }
        assert_eq!(apart.ready(), Ok(()), "a model without a base shares no engine");
        assert_serves(server, apart);
        assert!(instances.into_iter().all(|instance| instance.finalize().is_ok()));
    });
}

#[test]
fn instance_that_is_removed_waits_for_its_own_requests_alone() {
    serve_four(|server, [base, first, second, apart]| {
        let endless = endless(server, 64);
        second.execute(&[&endless]).unwrap();
        let running = ask(server, &json!({"num_inference_steps": 50, "seed": 1}));
        first.execute(&[&running]).unwrap();
        first.finalize().unwrap();
        assert_eq!(images(&running).len(), 1);
        assert_eq!(endless.final_responses(), 0, "the engine goes on for the others");
        assert_serves(server, &base);
        endless.cancel();
        assert_eq!(answer(&endless).unwrap_err().code(), ErrorCode::Cancelled);
        for instance in [base, second, apart] {
            instance.finalize().unwrap();
        }
    });
}
