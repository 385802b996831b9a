//! The images of the GPU path: those of float16 on the CPU, but for rounding.

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use test_support::psnr;
use triton_diffusion::schedulers;
use triton_fake::{InstanceSpec, ModelSpec};

use super::pretend::{Memory, in_own_process, memory, start_log, take_log};
use super::support::*;
use crate::support::*;

fn float16(spec: triton_fake::ModelSpec) -> triton_fake::ModelSpec {
    spec.parameter("dtype", "float16")
}

/// Serves the cases, which are of one checkpoint, on a GPU and on the CPU.
fn assert_same_images(cases: &[&Case]) {
    let checkpoint = cases[0].checkpoint;
    let mut on_the_cpu = Vec::new();
    serve_on(InstanceSpec::default(), checkpoint, float16, |server, instance| {
        on_the_cpu.extend(cases.iter().map(|case| serve_pixels(server, instance, case)));
    });
    serve_on(
        on_gpu(0),
        checkpoint,
        |spec| spec,
        |server, instance| {
            start_log();
            for (case, expected) in cases.iter().zip(&on_the_cpu) {
                assert_near(case.name, &serve_pixels(server, instance, case), expected);
            }
            let races: Vec<String> = take_log().into_iter().filter(|line| line.starts_with("RACE")).collect();
            assert!(races.is_empty(), "{races:#?}");
        },
    );
}

#[test]
fn every_pipeline_computes_the_image_of_the_cpu() {
    in_own_process(&[], || {
        let cases = pipelines();
        let checkpoints: std::collections::BTreeSet<&str> = cases.iter().map(|case| case.checkpoint).collect();
        for checkpoint in checkpoints {
            let cases: Vec<&Case> = cases.iter().filter(|case| case.checkpoint == checkpoint).collect();
            assert_same_images(&cases);
        }
        assert_eq!(
            memory(0, Memory::Used),
            0,
            "bytes on the GPU after the models were unloaded"
        );
    });
}

#[test]
fn every_scheduler_computes_the_image_of_the_cpu() {
    in_own_process(&[], || {
        let cases: Vec<Case> = schedulers::names()
            .iter()
            .map(|&name| Case {
                name,
                checkpoint: "sd2_base",
                gen_args: json!({"scheduler": name, "num_inference_steps": 5, "seed": 5}),
                inputs: vec![],
            })
            .collect();
        assert_same_images(&cases.iter().collect::<Vec<_>>());
    });
}

#[test]
fn word_of_textual_inversion_computes_the_image_of_the_cpu() {
    in_own_process(&[], || {
        let folder = test_support::temporary_folder();
        let numbers = (0..3 * 32).flat_map(|number| (number as f32).sin().to_le_bytes());
        let data: Vec<u8> = numbers.collect();
        let tensor = TensorView::new(Dtype::F32, vec![3, 32], &data).unwrap();
        let file = safetensors::serialize([("emb_params", tensor)], None).unwrap();
        std::fs::write(folder.path().join("easyneg.safetensors"), file).unwrap();
        let case = |negative_prompt: &str| Case {
            name: "textual inversion",
            checkpoint: "sd1",
            gen_args: json!({"num_inference_steps": 3, "seed": 5}),
            inputs: vec![("negative_prompt", negative_prompt.to_owned())],
        };
        let serve = |device, change: &dyn Fn(ModelSpec) -> ModelSpec, negative_prompt: &str| {
            let mut pixels = Vec::new();
            let change = |spec: ModelSpec| change(spec.parameter("embeddings", folder.path().to_str().unwrap()));
            serve_on(device, "sd1", change, |server, instance| {
                pixels = serve_pixels(server, instance, &case(negative_prompt));
            });
            pixels
        };
        let expected = serve(InstanceSpec::default(), &float16, "blurry, easyneg");
        start_log();
        let ours = serve(on_gpu(0), &|spec| spec, "blurry, easyneg");
        assert_near("textual inversion", &ours, &expected);
        let races: Vec<String> = take_log().into_iter().filter(|line| line.starts_with("RACE")).collect();
        assert!(races.is_empty(), "{races:#?}");
        let other = serve(on_gpu(0), &|spec| spec, "blurry, easyneX");
        assert!(psnr(&other, &ours) < 40.0, "the word changes the image");
    });
}

/// Serves requests alone, and then together.
fn assert_same_together(checkpoint: &'static str, gen_args: [Value; 3]) {
    serve_on(
        on_gpu(0),
        checkpoint,
        |spec| spec,
        |server, instance| {
            let cases = gen_args.map(|gen_args| Case {
                name: "job",
                checkpoint,
                gen_args,
                inputs: vec![],
            });
            let alone: Vec<Vec<u8>> = cases.iter().map(|case| serve_pixels(server, instance, case)).collect();
            let calls = counter(server, "unet_calls");
            let requests = cases
                .each_ref()
                .map(|case| request(server, &case.gen_args, &case.inputs));
            instance.execute(&requests.each_ref()).unwrap();
            for (request, alone) in requests.iter().zip(&alone) {
                let together: Vec<u8> = images(request).iter().flat_map(|file| pixels(file)).collect();
                assert_near("with others", &together, alone);
            }
            assert!(
                counter(server, "unet_calls") - calls < 6.0 + 9.0 + 7.0,
                "the jobs shared no call"
            );
        },
    );
}

#[test]
fn jobs_of_one_call_do_not_change_each_other() {
    in_own_process(&[], || {
        let jobs = [
            json!({"num_inference_steps": 6, "seed": 1}),
            json!({"num_inference_steps": 9, "seed": 2, "scheduler": "EulerAncestralDiscreteScheduler"}),
            json!({"num_inference_steps": 7, "seed": 3, "guidance_scale": 1.0, "num_images_per_prompt": 3}),
        ];
        assert_same_together("sd2_base", jobs);
    });
}

#[test]
fn jobs_of_xl_with_other_sizes_do_not_change_each_other() {
    in_own_process(&[], || {
        let jobs = [
            json!({"num_inference_steps": 6, "seed": 1, "target_size": [128, 96], "scheduler": "DDIMScheduler"}),
            json!({"num_inference_steps": 9, "seed": 2, "prompt_2": "a dog", "num_images_per_prompt": 2}),
            json!({"num_inference_steps": 7, "seed": 3, "guidance_scale": 1.0, "original_size": [16, 16]}),
        ];
        assert_same_together("sdxl_base", jobs);
    });
}

#[test]
fn second_gpu_computes_the_same_bytes() {
    in_own_process(&[("PRETEND_DEVICES", "2")], || {
        let case = &pipelines()[0];
        let [first, second] = [0, 1].map(|index| {
            let mut pixels = Vec::new();
            serve_on(
                on_gpu(index),
                case.checkpoint,
                |spec| spec,
                |server, instance| {
                    assert!(memory(index, Memory::Used) > 0 && memory(1 - index, Memory::Used) == 0);
                    pixels = serve_pixels(server, instance, case);
                    assert_eq!(memory(1 - index, Memory::Used), 0);
                },
            );
            pixels
        });
        assert!(first == second);
    });
}

#[test]
fn cancel_and_unload_leave_no_memory_on_the_gpu() {
    in_own_process(&[], || {
        const BUFFER: u64 = 32 << 20;
        for _ in 0..3 {
            serve_on(
                on_gpu(0),
                "sd2_base",
                |spec| spec,
                |server, instance| {
                    let cancelled = endless(server, 64);
                    let unloaded = endless(server, 64);
                    instance.execute(&[&cancelled, &unloaded]).unwrap();
                    wait_for_calls(server, 3);
                    cancelled.cancel();
                    assert!(answer(&cancelled).is_err());
                },
            );
            assert_eq!(memory(0, Memory::Used), 0);
            assert_eq!(memory(0, Memory::Cached), 0, "the cache is freed with the last model");
            // Only the buffers for loads stay, one to four of them.
            let pinned = memory(0, Memory::Pinned);
            assert!(pinned.is_multiple_of(BUFFER) && pinned <= 4 * BUFFER, "{pinned} bytes");
        }
    });
}
