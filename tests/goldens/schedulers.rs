//! Each scheduler on fixed trajectories, with each of its switches.

use diffusion_core::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value};
use tch::Tensor;
use triton_diffusion::schedulers::{SamplingOptions, Scheduler, SchedulerConfig};
use triton_diffusion::torch::Generator;

use crate::support::{Goldens, is_number};

#[derive(Deserialize)]
struct Case {
    name: String,
    class: String,
    config: Map<String, Value>,
    num_inference_steps: usize,
    timesteps: Option<Vec<i64>>,
    sigmas: Option<Vec<f64>>,
    /// Steps that are left out, for a run that starts from an image.
    begin: Option<usize>,
    eta: f64,
    seed: u64,
    /// Of the cases that diffusers runs.
    #[serde(default)]
    init_noise_sigma: f64,
}

impl Case {
    fn build(&self) -> Result<Box<dyn Scheduler>> {
        let text = Value::Object(self.config.clone()).to_string();
        let options = SamplingOptions {
            num_inference_steps: self.num_inference_steps,
            timesteps: self.timesteps.clone(),
            sigmas: self.sigmas.clone(),
            eta: self.eta,
        };
        SchedulerConfig::parse_as(&text, &self.class)?.build(&options)
    }
}

#[derive(Deserialize)]
struct Manifest {
    cases: Vec<Case>,
    /// Those at which diffusers raises an error, or makes numbers that are not finite.
    refused: Vec<Case>,
}

/// diffusers fails at the third step of this one. A shorter run does not have it, but the load does not
/// know the runs, so it is refused there.
fn refused_at_load(case: &Case) -> Option<&'static str> {
    let is = |key: &str, value: Value| case.config.get(key) == Some(&value);
    let fails = is("algorithm_type", "sde-dpmsolver".into()) && is("solver_order", 3.into());
    fails.then_some("solver_order")
}

/// Runs one case and compares the timesteps, the scaled inputs and the samples.
fn follow(goldens: &mut Goldens, case: &Case, mut scheduler: Box<dyn Scheduler>) {
    let name = |tensor: &str| format!("{}/{tensor}", case.name);
    let mut generator = Generator::new(case.seed).unwrap();
    let (sigma, theirs) = (scheduler.init_noise_sigma(), case.init_noise_sigma);
    assert!(is_number(sigma, theirs), "{}: {sigma} instead of {theirs}", case.name);
    let (outputs, noise) = (goldens.tensor("model_outputs"), goldens.tensor("noise"));
    let clean = goldens.tensor("sample");
    let mut sample = match case.begin {
        Some(begin) => {
            scheduler.set_begin_index(begin * scheduler.order());
            scheduler.add_noise(&clean, &noise).unwrap()
        }
        None => &clean * scheduler.init_noise_sigma(),
    };
    goldens.compare_numbers(&name("timesteps"), scheduler.timesteps());
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
        unscaled.extend(samples.iter().map(Tensor::shallow_clone).take(samples.len() - 1));
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
    let manifest: Manifest = goldens.manifest();
    let _no_grad = tch::no_grad_guard();
    for case in manifest.cases {
        if let Some(switch) = refused_at_load(&case) {
            let error = case.build().err().unwrap().to_string();
            assert!(error.contains(switch), "{}: {error}", case.name);
            continue;
        }
        let scheduler = case.build().unwrap_or_else(|error| panic!("{}: {error}", case.name));
        follow(&mut goldens, &case, scheduler);
    }
    for case in manifest.refused {
        // What only shows at the first step shows before the network is called for it.
        let sample = goldens.tensor("sample");
        let begun = case.build().and_then(|run| run.scale_model_input(&sample));
        let error = begun.err();
        let error = error.unwrap_or_else(|| panic!("{}: diffusers refuses it", case.name));
        assert!(
            matches!(error, Error::InvalidArgument(_) | Error::Unsupported(_)),
            "{}: {error}",
            case.name
        );
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
fn euler_ancestral_discrete() {
    trajectories("schedulers/euler_ancestral_discrete");
}

#[test]
fn euler_discrete() {
    trajectories("schedulers/euler_discrete");
}

#[test]
fn heun_discrete() {
    trajectories("schedulers/heun_discrete");
}

#[test]
fn k_dpm_2_ancestral_discrete() {
    trajectories("schedulers/k_dpm_2_ancestral_discrete");
}

#[test]
fn k_dpm_2_discrete() {
    trajectories("schedulers/k_dpm_2_discrete");
}

#[test]
fn lms_discrete() {
    trajectories("schedulers/lms_discrete");
}

#[test]
fn pndm() {
    trajectories("schedulers/pndm");
}

#[test]
fn ddpm() {
    trajectories("schedulers/ddpm");
}

#[test]
fn lcm() {
    trajectories("schedulers/lcm");
}

#[test]
fn tcd() {
    trajectories("schedulers/tcd");
}

#[test]
fn deis_multistep() {
    trajectories("schedulers/deis_multistep");
}

#[test]
fn dpm_solver_singlestep() {
    trajectories("schedulers/dpm_solver_singlestep");
}

#[test]
fn unipc_multistep() {
    trajectories("schedulers/unipc_multistep");
}
