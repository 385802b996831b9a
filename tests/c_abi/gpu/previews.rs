//! Previews on a GPU: the images of the CPU, and steps that wait for nothing.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use diffusion_core::config::ModelParameters;
use diffusion_engine::Pipeline;
use diffusion_image::RgbImage;
use diffusion_request::{ElementInputs, RequestValidator};
use serde_json::json;
use test_support::checkpoint;
use triton_diffusion::pipelines::{Components, Device, DiffusionPipeline, PreviewImages, initialize_libtorch};

use super::pretend::{Memory, in_own_process, memory, start_log, take_log};
use super::support::*;
use crate::progress::{decoupled, responses};
use crate::support::*;

/// Makes the previews of all steps of a request, all at once in the memory. `check` gets the log of each step.
fn previews(device: Device, dtype: &str, preview: &str, check: impl Fn(Vec<String>)) -> Vec<Vec<RgbImage>> {
    let parameters = json!({ "dtype": { "string_value": dtype }, "safety_checker": { "string_value": "off" } });
    let parameters = ModelParameters::parse(&parameters).unwrap().0;
    let (components, _) = Components::load(&checkpoint("sd1_tiny"), &parameters, device).unwrap();
    let validator = RequestValidator::new(components.model_info(), &parameters).unwrap();
    let mut pipeline = DiffusionPipeline::new(components, validator.limits().max_pixels);
    pipeline.init_thread().unwrap();
    let args = json!({"num_inference_steps": 5, "seed": 3, "progress_every": 1, "preview": preview,
        "num_images_per_prompt": 2});
    let args = args.to_string();
    let inputs = ElementInputs {
        prompt: b"a red cat",
        gen_args: Some(args.as_bytes()),
        ..ElementInputs::default()
    };
    let mut job = pipeline.prepare(validator.validate(&inputs).unwrap().into()).unwrap();
    let mut made: Vec<PreviewImages> = Vec::new();
    while !job.is_done() {
        start_log();
        pipeline.step(&mut [&mut job]).unwrap();
        made.push(pipeline.preview(&job).unwrap().unwrap());
        check(take_log());
    }
    // As the encoder thread does it.
    std::thread::spawn(move || made.iter().map(|preview| preview.wait().unwrap()).collect())
        .join()
        .unwrap()
}

#[test]
fn previews_are_those_of_the_cpu_and_no_step_waits_for_them() {
    in_own_process(&[], || {
        initialize_libtorch();
        for preview in ["linear", "tiny", "vae"] {
            let expected = previews(Device::Cpu, "float32", preview, drop);
            let made = previews(Device::Cuda(0), "float32", preview, |log| {
                let waits = ["wait", "copy waiting", "RACE"];
                let found: Vec<&String> = log
                    .iter()
                    .filter(|line| waits.iter().any(|what| line.starts_with(what)))
                    .collect();
                assert!(found.is_empty(), "{preview}: {found:#?}");
            });
            assert_eq!(made.len(), expected.len());
            for (ours, theirs) in made.iter().flatten().zip(expected.iter().flatten()) {
                assert_near(preview, ours.rgb(), theirs.rgb());
            }
        }
    });
}

#[test]
fn previews_of_a_server_leave_no_memory_on_the_gpu() {
    in_own_process(&[], || {
        serve_on(on_gpu(0), "sd2_base", decoupled, |server, instance| {
            start_log();
            let args = json!({"num_inference_steps": 30, "seed": 3, "progress_every": 1, "preview": "vae"});
            let requests = [request(server, &args, &[]), request(server, &args, &[])];
            instance.execute(&requests.each_ref()).unwrap();
            for request in &requests {
                let (before, last) = responses(request);
                assert!(last.error.is_none(), "{:?}", last.error);
                let files: Vec<String> = before
                    .iter()
                    .filter_map(|response| response.outputs.get(OUTPUT))
                    .flat_map(|output| output.strings().unwrap())
                    .collect();
                assert!(!files.is_empty());
                for file in files {
                    png_size(&BASE64_STANDARD.decode(file).unwrap());
                }
            }
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
