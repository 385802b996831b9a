//! LoRAs on a GPU: the images of the CPU, no mixing in a shared call, and steps that wait for nothing.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use diffusion_core::config::ModelParameters;
use diffusion_engine::Pipeline;
use diffusion_request::{ElementInputs, RequestValidator};
use serde_json::{Value, json};
use test_support::checkpoint;
use test_support::recipe::Recipe;
use triton_diffusion::pipelines::{Components, Device, DiffusionPipeline, Job, PipelineRequest, initialize_libtorch};
use triton_fake::{InstanceSpec, ModelSpec};

use super::pretend::{Memory, in_own_process, memory, start_log, take_log};
use super::support::*;
use crate::support::*;

/// LoRAs of the goldens, by their names here: on the attention layers and the text encoder, and on convolutions too.
const LORAS: [(&str, &str); 2] = [
    ("style", "sd2_base-kohya.safetensors"),
    ("locon", "sd2_base-locon.safetensors"),
];

fn write_loras(folder: &Path) {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/goldens/adapters.json");
    let manifest: Value = serde_json::from_str(&fs::read_to_string(goldens).unwrap()).unwrap();
    let files = manifest["files"].as_array().unwrap();
    for (name, path) in LORAS {
        let found = files.iter().find(|file| file["path"] == path).unwrap();
        let recipe: Recipe = serde_json::from_value(found["content"].clone()).unwrap();
        fs::write(folder.join(format!("{name}.safetensors")), recipe.weights().unwrap()).unwrap();
    }
}

fn cases() -> Vec<Case> {
    let all = [
        json!([{"name": "style"}]),
        json!([{"name": "locon", "scale": -0.5}]),
        json!([]),
        json!([{"name": "style", "scale": 0.7}, {"name": "locon"}]),
    ];
    all.into_iter()
        .map(|loras| Case {
            name: "LoRAs",
            checkpoint: "sd2_base",
            gen_args: json!({"num_inference_steps": 6, "seed": 5, "loras": loras}),
            inputs: vec![],
        })
        .collect()
}

#[test]
fn loras_give_the_images_of_the_cpu_alone_and_in_a_shared_call() {
    in_own_process(&[], || {
        let folder = tempfile::tempdir().unwrap();
        write_loras(folder.path());
        let parameters = |spec: ModelSpec| spec.parameter("loras", &folder.path().display().to_string());
        let cases = cases();
        let mut expected = Vec::new();
        serve_on(
            InstanceSpec::default(),
            "sd2_base",
            |spec| parameters(spec).parameter("dtype", "float16"),
            |server, instance| expected.extend(cases.iter().map(|case| serve_pixels(server, instance, case))),
        );
        serve_on(on_gpu(0), "sd2_base", parameters, |server, instance| {
            start_log();
            for (case, expected) in cases.iter().zip(&expected) {
                assert_near(case.name, &serve_pixels(server, instance, case), expected);
            }
            let calls = counter(server, "unet_calls");
            let requests: Vec<_> = cases.iter().map(|case| request(server, &case.gen_args, &[])).collect();
            instance.execute(&requests.iter().collect::<Vec<_>>()).unwrap();
            for (request, expected) in requests.iter().zip(&expected) {
                let together: Vec<u8> = images(request).iter().flat_map(|file| pixels(file)).collect();
                assert_near("in a shared call", &together, expected);
            }
            assert!(
                counter(server, "unet_calls") - calls < 4.0 * 6.0,
                "the requests shared no call"
            );
            let races: Vec<String> = take_log().into_iter().filter(|line| line.starts_with("RACE")).collect();
            assert!(races.is_empty(), "{races:#?}");
        });
        assert_eq!(
            memory(0, Memory::Used),
            0,
            "bytes on the GPU after the model was unloaded"
        );
    });
}

#[test]
fn steps_with_loras_wait_for_nothing() {
    in_own_process(&[], || {
        let folder = tempfile::tempdir().unwrap();
        write_loras(folder.path());
        initialize_libtorch();
        let parameters = ModelParameters::default();
        let (components, _) = Components::load(&checkpoint("sd2_base"), &parameters, Device::Cuda(0)).unwrap();
        let components = components.with_loras(folder.path().to_owned(), None, None);
        let validator = RequestValidator::new(components.model_info(), &parameters).unwrap();
        let mut pipeline = DiffusionPipeline::new(components.clone(), validator.limits().max_pixels);
        pipeline.init_thread().unwrap();
        let mut jobs: Vec<Job> = cases()
            .iter()
            .map(|case| {
                let gen_args = case.gen_args.to_string();
                let inputs = ElementInputs {
                    prompt: b"a red cat",
                    negative_prompt: None,
                    image: None,
                    mask_image: None,
                    depth_map: None,
                    gen_args: Some(gen_args.as_bytes()),
                };
                let request = validator.validate(&inputs).unwrap();
                // On another thread, as in a server.
                let loading = components.clone();
                let adapters = std::thread::scope(|scope| {
                    let load = || loading.load_adapters(&request).unwrap();
                    scope.spawn(load).join().unwrap()
                });
                assert_eq!(adapters.count(), request.loras.len());
                let planned = PipelineRequest::from(request).with_adapters(Arc::clone(&adapters));
                pipeline.prepare(planned).unwrap()
            })
            .collect();
        while !jobs.iter().any(Job::is_done) {
            start_log();
            let mut batch: Vec<&mut Job> = jobs.iter_mut().collect();
            assert!(pipeline.step(&mut batch).unwrap().iter().all(Result::is_ok));
            let log = take_log();
            let waits = |line: &&String| {
                ["wait", "copy waiting", "RACE"]
                    .iter()
                    .any(|what| line.starts_with(what))
            };
            let found: Vec<&String> = log.iter().filter(waits).collect();
            assert!(found.is_empty(), "{found:#?}");
        }
    });
}
