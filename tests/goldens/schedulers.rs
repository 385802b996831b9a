//! Each scheduler on fixed trajectories, with each of its switches.

use serde::Deserialize;
use serde_json::{Map, Value};
use tch::{Kind, Tensor};
use triton_diffusion::libtorch::Generator;
use triton_diffusion::schedulers::{Plan, Scheduler, SchedulerConfig};

use crate::support::{Cases, Goldens};

#[derive(Deserialize)]
struct Case {
    name: String,
    class: String,
    config: Map<String, Value>,
    num_inference_steps: usize,
    timesteps: Option<Vec<i64>>,
    sigmas: Option<Vec<f64>>,
    /// Steps that are left out, for a run that starts from a picture.
    begin: Option<usize>,
    eta: f64,
    seed: u64,
    init_noise_sigma: f64,
}

/// Switches that fail the load, by name.
fn refused(case: &Case) -> Option<&'static str> {
    let is = |key: &str, value: Value| case.config.get(key) == Some(&value);
    // diffusers fails at its third step.
    if is("algorithm_type", "sde-dpmsolver".into()) && is("solver_order", 3.into()) {
        return Some("solver_order");
    }
    [
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "use_lu_lambdas",
    ]
    .into_iter()
    .find(|key| is(key, true.into()))
}

/// Runs one case and compares the timesteps, the scaled inputs and the samples.
fn follow(goldens: &mut Goldens, case: &Case, mut scheduler: Box<dyn Scheduler>) {
    let name = |tensor: &str| format!("{}/{tensor}", case.name);
    let mut generator = Generator::new(case.seed).unwrap();
    assert_eq!(
        scheduler.init_noise_sigma(),
        case.init_noise_sigma,
        "{}",
        case.name
    );
    let (outputs, noise) = (goldens.tensor("model_outputs"), goldens.tensor("noise"));
    let clean = goldens.tensor("sample");
    let mut sample = match case.begin {
        Some(begin) => {
            scheduler.set_begin_index(begin * scheduler.order());
            scheduler.add_noise(&clean, &noise).unwrap()
        }
        None => &clean * scheduler.init_noise_sigma(),
    };
    let theirs = goldens.tensor(&name("timesteps")).to_kind(Kind::Double);
    assert_eq!(
        Tensor::from_slice(scheduler.timesteps()),
        theirs,
        "{}: timesteps",
        case.name
    );
    let (mut noised, mut inputs, mut samples) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..scheduler.timesteps().len() {
        if case.begin.is_some() {
            noised.push(scheduler.add_noise(&clean, &noise).unwrap());
        }
        inputs.push(scheduler.scale_model_input(&sample).unwrap());
        sample = scheduler
            .step(&outputs.get(index as i64), &sample, &mut generator)
            .unwrap();
        samples.push(sample.shallow_clone());
    }
    assert!(
        scheduler.step(&sample, &sample, &mut generator).is_err(),
        "{}: a step too many",
        case.name
    );
    goldens.compare(&name("samples"), &Tensor::stack(&samples, 0));
    if case.begin.is_some() {
        goldens.compare(&name("noised"), &Tensor::stack(&noised, 0));
    }
    if goldens.has(&name("inputs")) {
        goldens.compare(&name("inputs"), &Tensor::stack(&inputs, 0));
    } else {
        let mut unscaled = vec![inputs[0].shallow_clone()];
        unscaled.extend(
            samples
                .iter()
                .map(Tensor::shallow_clone)
                .take(samples.len() - 1),
        );
        assert_eq!(
            Tensor::stack(&inputs, 0),
            Tensor::stack(&unscaled, 0),
            "{}: inputs",
            case.name
        );
    }
}

fn trajectories(group: &'static str) {
    let mut goldens = Goldens::open(group);
    let cases: Cases<Case> = goldens.manifest();
    let _no_grad = tch::no_grad_guard();
    for case in cases.cases {
        let text = Value::Object(case.config.clone()).to_string();
        let config = SchedulerConfig::parse_as(&text, &case.class);
        if let Some(switch) = refused(&case) {
            let error = config.unwrap_err().to_string();
            assert!(error.contains(switch), "{}: {error}", case.name);
            continue;
        }
        let plan = Plan {
            num_inference_steps: case.num_inference_steps,
            timesteps: case.timesteps.clone(),
            sigmas: case.sigmas.clone(),
            eta: case.eta,
        };
        let scheduler = config
            .and_then(|config| config.build(&plan))
            .unwrap_or_else(|error| panic!("{}: {error}", case.name));
        follow(&mut goldens, &case, scheduler);
    }
    goldens.report();
}

#[test]
fn ddim() {
    trajectories("schedulers/ddim");
}

#[test]
fn dpm_solver_multistep() {
    trajectories("schedulers/dpm_solver_multistep");
}

#[test]
fn pndm() {
    trajectories("schedulers/pndm");
}
