//! Errors of bad keys and arguments, and keys of other classes that are accepted.

use serde_json::{Value, json};

use super::support::{config, options};
use crate::schedulers::{SamplingOptions, SchedulerConfig};
use diffusion_core::{Error, Result};

fn read(class: &str, keys: &Value) -> Result<SchedulerConfig> {
    SchedulerConfig::parse_as(&keys.to_string(), class)
}

#[test]
fn read_refused_key_is_named() {
    let solvers = [
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "UniPCMultistepScheduler",
    ];
    let mut refused = vec![
        ("DDPMScheduler", json!({"variance_type": "learned"}), "variance_type"),
        (
            "DDPMScheduler",
            json!({"variance_type": "learned_range"}),
            "variance_type",
        ),
        (
            "DDPMScheduler",
            json!({"variance_type": "fixed_large_log"}),
            "variance_type",
        ),
        (
            "LCMScheduler",
            json!({"original_inference_steps": 0}),
            "original_inference_steps",
        ),
        (
            "TCDScheduler",
            json!({"original_inference_steps": 1001}),
            "original_inference_steps",
        ),
        (
            "DPMSolverMultistepScheduler",
            json!({"variance_type": "learned_range"}),
            "variance_type",
        ),
        (
            "DPMSolverMultistepScheduler",
            json!({"algorithm_type": "dpmsolver"}),
            "final_sigmas_type",
        ),
        (
            "DPMSolverMultistepScheduler",
            json!({"algorithm_type": "deis"}),
            "final_sigmas_type",
        ),
        (
            "DPMSolverMultistepScheduler",
            json!({"lambda_min_clipped": 99}),
            "lambda_min_clipped",
        ),
        (
            "DPMSolverSinglestepScheduler",
            json!({"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}),
            "algorithm_type",
        ),
        (
            "DPMSolverSinglestepScheduler",
            json!({"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "thresholding": true}),
            "thresholding",
        ),
        (
            "DEISMultistepScheduler",
            json!({"algorithm_type": "sde-dpmsolver++"}),
            "sde-dpmsolver++",
        ),
        ("UniPCMultistepScheduler", json!({"solver_p": {}}), "solver_p"),
        ("UniPCMultistepScheduler", json!({"predict_x0": false}), "predict_x0"),
        ("UniPCMultistepScheduler", json!({"solver_type": "bh1"}), "solver_type"),
        (
            "UniPCMultistepScheduler",
            json!({"lower_order_final": false}),
            "lower_order_final",
        ),
    ];
    for class in solvers {
        refused.extend([
            (class, json!({"use_flow_sigmas": true}), "use_flow_sigmas"),
            (class, json!({"use_dynamic_shifting": true}), "use_dynamic_shifting"),
            (
                class,
                json!({"use_karras_sigmas": true, "use_beta_sigmas": true}),
                "use_karras_sigmas",
            ),
            (class, json!({"solver_order": 0}), "solver_order"),
            (class, json!({"solver_order": 10}), "solver_order"),
        ]);
    }
    for (class, keys, name) in refused {
        let error = read(class, &keys).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_) | Error::Unsupported(_)));
        assert!(error.to_string().contains(name), "{class} {keys}: {error}");
    }
}

#[test]
fn build_refused_argument_is_named() {
    let timesteps = || SamplingOptions {
        timesteps: Some(vec![900, 400]),
        ..options(2)
    };
    for (class, keys, arguments, name) in [
        ("LCMScheduler", json!({}), options(51), "num_inference_steps"),
        ("TCDScheduler", json!({}), options(51), "num_inference_steps"),
        (
            "TCDScheduler",
            json!({}),
            SamplingOptions { eta: 1.5, ..options(4) },
            "eta",
        ),
        ("DDPMScheduler", json!({}), options(1001), "num_inference_steps"),
        ("DDPMScheduler", json!({"num_train_timesteps": 500}), timesteps(), "900"),
        (
            "DDPMScheduler",
            json!({}),
            SamplingOptions { eta: 0.5, ..options(4) },
            "eta",
        ),
        ("UniPCMultistepScheduler", json!({}), timesteps(), "timesteps"),
        ("DEISMultistepScheduler", json!({}), timesteps(), "timesteps"),
        (
            "DPMSolverMultistepScheduler",
            json!({"use_lu_lambdas": true}),
            timesteps(),
            "timesteps",
        ),
        (
            "DPMSolverSinglestepScheduler",
            json!({"use_beta_sigmas": true}),
            timesteps(),
            "timesteps",
        ),
        (
            "DPMSolverMultistepScheduler",
            json!({}),
            options(1000),
            "num_inference_steps",
        ),
        (
            "UniPCMultistepScheduler",
            json!({"use_karras_sigmas": true}),
            options(0),
            "num_inference_steps",
        ),
        (
            "UniPCMultistepScheduler",
            json!({"timestep_spacing": "trailing"}),
            options(769),
            "num_inference_steps",
        ),
        (
            "DPMSolverMultistepScheduler",
            json!({
                "solver_order": 3,
                "use_karras_sigmas": true,
                "final_sigmas_type": "sigma_min",
            }),
            options(15),
            "euler_at_final",
        ),
    ] {
        let error = config(class, &keys).build(&arguments).err().unwrap();
        assert!(matches!(error, Error::InvalidArgument(_)), "{class} {keys}: {error}");
        assert!(error.to_string().contains(name), "{class} {keys}: {error}");
    }
}

#[test]
fn read_accepts_keys_of_other_classes() {
    for (class, keys) in [
        (
            "DPMSolverMultistepScheduler",
            json!({"_class_name": "DDPMScheduler", "variance_type": "fixed_large"}),
        ),
        ("DPMSolverMultistepScheduler", json!({"solver_type": "bh2"})),
        (
            "DPMSolverSinglestepScheduler",
            json!({"solver_type": "logrho", "algorithm_type": "deis", "final_sigmas_type": "sigma_min"}),
        ),
        (
            "DEISMultistepScheduler",
            json!({"solver_type": "heun", "algorithm_type": "dpmsolver++"}),
        ),
        (
            "UniPCMultistepScheduler",
            json!({"solver_type": "heun", "algorithm_type": "sde-dpmsolver", "sigma_min": null}),
        ),
        (
            "DDPMScheduler",
            json!({"_class_name": "PNDMScheduler", "skip_prk_steps": true, "use_flow_sigmas": true}),
        ),
        (
            "LCMScheduler",
            json!({"final_sigmas_type": "sigma_min", "solver_order": 3}),
        ),
    ] {
        assert!(read(class, &keys).is_ok(), "{class}: {keys}");
    }
}

#[test]
fn with_class_every_pair_builds() {
    for &class in crate::schedulers::names() {
        for &other in crate::schedulers::names() {
            let loaded = config(other, &json!({"_class_name": other}));
            let taken = loaded.with_class(class).unwrap();
            assert_eq!(taken.class_name(), class);
            assert!(taken.build(&options(5)).is_ok(), "{other} as {class}");
        }
    }
}
