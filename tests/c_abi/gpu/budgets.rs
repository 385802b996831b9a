//! What a step may cost on a GPU: how many operators, no wait for the GPU, no copy that waits.

use std::collections::BTreeMap;

use diffusion_core::config::ModelParameters;
use diffusion_engine::Pipeline;
use diffusion_request::{ElementInputs, RequestValidator};
use serde_json::{Value, json};
use test_support::checkpoint;
use triton_diffusion::pipelines::{Components, Device, DiffusionPipeline, Job, initialize_libtorch};
use triton_diffusion::schedulers;

use super::pretend::{in_own_process, start_log, take_log};

/// Operators of a step with guidance, scheduler included, for a UNet with the blocks of Stable Diffusion 2.
const MAX_OPERATORS: usize = 590;

struct Model {
    pipeline: DiffusionPipeline,
    validator: RequestValidator,
}

impl Model {
    fn load(name: &str) -> Self {
        initialize_libtorch();
        let parameters = ModelParameters::default();
        let (components, _) = Components::load(&checkpoint(name), &parameters, Device::Cuda(0)).unwrap();
        let validator = RequestValidator::new(components.model_info(), &parameters).unwrap();
        let mut pipeline = DiffusionPipeline::new(components, validator.limits().max_pixels);
        pipeline.init_thread().unwrap();
        Self { pipeline, validator }
    }

    fn prepare(&mut self, gen_args: &Value) -> Job {
        let gen_args = gen_args.to_string();
        let inputs = ElementInputs {
            prompt: b"a red cat",
            negative_prompt: None,
            image: None,
            mask_image: None,
            depth_map: None,
            gen_args: Some(gen_args.as_bytes()),
        };
        let request = self.validator.validate(&inputs).unwrap();
        self.pipeline.prepare(request.into()).unwrap()
    }

    /// Takes all steps of the jobs together and returns the log of each step.
    fn steps(&mut self, jobs: &mut [Job]) -> Vec<Vec<String>> {
        let mut logs = Vec::new();
        while !jobs.iter().any(|job| job.is_done()) {
            start_log();
            let mut batch: Vec<&mut Job> = jobs.iter_mut().collect();
            let results = self.pipeline.step(&mut batch).unwrap();
            assert!(results.iter().all(Result::is_ok));
            logs.push(take_log());
        }
        logs
    }
}

fn count(log: &[String], start: &str) -> usize {
    log.iter().filter(|line| line.starts_with(start)).count()
}

/// The operators of a log, most frequent first.
fn operators(log: &[String]) -> Vec<(usize, &str)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for line in log {
        if let Some(name) = line.strip_prefix("op ").and_then(|rest| rest.split(' ').next()) {
            *counts.entry(name).or_default() += 1;
        }
    }
    let mut sorted: Vec<_> = counts.into_iter().map(|(name, count)| (count, name)).collect();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    sorted
}

fn assert_no_wait(name: &str, logs: &[Vec<String>]) {
    for (step, log) in logs.iter().enumerate() {
        for what in ["wait", "copy waiting", "RACE"] {
            let found: Vec<&String> = log.iter().filter(|line| line.starts_with(what)).collect();
            assert!(found.is_empty(), "{name}, step {step}: {found:#?}");
        }
        // The host is at most one step ahead of the GPU.
        assert!(step < 2 || count(log, "pace") == 1, "{name}, step {step}");
    }
}

#[test]
fn step_waits_for_nothing_with_any_scheduler() {
    in_own_process(&[], || {
        let mut model = Model::load("sd2_base");
        for &name in schedulers::names() {
            let job = model.prepare(&json!({"scheduler": name, "num_inference_steps": 6, "seed": 1}));
            assert_no_wait(name, &model.steps(&mut [job]));
        }
        let eta = json!({"scheduler": "DDIMScheduler", "eta": 1.0, "num_inference_steps": 6});
        let job = model.prepare(&eta);
        assert_no_wait("DDIM with noise", &model.steps(&mut [job]));
    });
}

#[test]
fn steps_of_xl_wait_for_nothing() {
    in_own_process(&[], || {
        let mut model = Model::load("sdxl_base");
        let jobs = [
            json!({"num_inference_steps": 6}),
            json!({"num_inference_steps": 6, "num_images_per_prompt": 2, "target_size": [96, 64]}),
            json!({"num_inference_steps": 7, "guidance_scale": 1.0}),
        ];
        let mut jobs = jobs.map(|gen_args| model.prepare(&gen_args));
        assert_no_wait("three jobs", &model.steps(&mut jobs));
    });
}

#[test]
fn step_of_several_jobs_waits_for_nothing() {
    in_own_process(&[], || {
        let mut model = Model::load("sd2_base");
        let jobs = [
            json!({"num_inference_steps": 5}),
            json!({"num_inference_steps": 6, "scheduler": "EulerAncestralDiscreteScheduler"}),
            json!({"num_inference_steps": 7, "guidance_scale": 1.0}),
        ];
        let mut jobs = jobs.map(|gen_args| model.prepare(&gen_args));
        let logs = model.steps(&mut jobs);
        assert_no_wait("three jobs", &logs);
        // Five entries are padded to six, and the texts are joined in the first step only.
        assert!(
            logs[1].iter().any(|line| line.contains("Half[6,")),
            "{:#?}",
            &logs[1][..20]
        );
        let joins = |log: &[String]| count(log, "op aten::cat");
        assert!(
            joins(&logs[0]) > joins(&logs[1]) + 30,
            "{} and {}",
            joins(&logs[0]),
            joins(&logs[1])
        );
    });
}

#[test]
fn step_has_few_operators() {
    in_own_process(&[], || {
        let mut model = Model::load("sd2_base");
        for scheduler in schedulers::names() {
            let job = model.prepare(&json!({"scheduler": scheduler, "num_inference_steps": 6}));
            let logs = model.steps(&mut [job]);
            let most = logs.iter().max_by_key(|log| count(log, "op ")).unwrap();
            let total = count(most, "op ");
            println!("{scheduler}: {total} operators");
            assert!(
                total <= MAX_OPERATORS,
                "{scheduler}: {total} operators: {:#?}",
                operators(most)
            );
        }
    });
}

#[test]
fn prepare_and_finish_copy_without_waiting_but_for_the_image() {
    in_own_process(&[], || {
        let mut model = Model::load("sd2_base");
        for gen_args in [
            json!({"num_images_per_prompt": 2}),
            json!({"prompt_syntax": "weighted"}),
        ] {
            start_log();
            let mut job = model.prepare(&gen_args);
            let log = take_log();
            assert_eq!((count(&log, "wait"), count(&log, "copy waiting")), (0, 0), "{log:#?}");
            while !job.is_done() {
                model.pipeline.step(&mut [&mut job]).unwrap();
            }
            start_log();
            model.pipeline.finish(job).unwrap();
            let log = take_log();
            assert_eq!((count(&log, "wait"), count(&log, "copy waiting")), (1, 0), "{log:#?}");
        }
    });
}

#[test]
fn text_that_was_encoded_before_is_not_encoded_again() {
    in_own_process(&[], || {
        let mut model = Model::load("sd2_base");
        let mut layer_norms = || {
            start_log();
            let _job = model.prepare(&json!({}));
            count(&take_log(), "op aten::native_layer_norm")
        };
        assert!(layer_norms() > 0);
        assert_eq!(layer_norms(), 0);
    });
}
