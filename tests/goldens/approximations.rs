//! `deep_cache` and the tiny decoder.

use diffusion_core::config::{ModelParameters, Numerics};
use diffusion_engine::Pipeline;
use serde::Deserialize;
use serde_json::{Value, json};
use tch::Tensor;
use triton_diffusion::models::layers::BatchSplit;
use triton_diffusion::models::unet::{TimeInput, UNet2DConditionModel, UNetInput};
use triton_diffusion::models::vae::{AutoencoderTiny, AutoencoderTinyConfig};
use triton_diffusion::pipelines::DiffusionPipeline;
use triton_diffusion::weights::read_json;

use crate::images::{compare, compare_fast, pipeline, prepare};
use crate::support::{Cases, Goldens, checkpoint, weights};

#[test]
fn approximated_images_match() {
    compare("approximations");
}

#[test]
fn fast_approximated_images_are_close_and_the_same_in_company() {
    compare_fast("approximations");
}

#[test]
fn tiny_decoder_images_match() {
    #[derive(Deserialize)]
    struct Case {
        checkpoint: String,
        input: String,
        output: String,
    }
    let mut goldens = Goldens::open("vae_tiny");
    let cases: Cases<Case> = goldens.manifest();
    let _no_grad = tch::no_grad_guard();
    for case in cases.cases {
        let config: AutoencoderTinyConfig =
            read_json(&checkpoint(&case.checkpoint).join("vae_tiny/config.json")).unwrap();
        config.check().unwrap();
        for fast in [false, true] {
            let weights = weights(&case.checkpoint, "vae_tiny", "diffusion_pytorch_model").fast(fast);
            let model = AutoencoderTiny::new(config.clone(), weights).unwrap();
            let latents = goldens.tensor(&case.input);
            let ours = model.decode(&latents).unwrap();
            let theirs = goldens.tensor(&case.output);
            if fast {
                assert!(ours.allclose(&theirs, 1e-3, 1e-3, false), "{}", case.output);
            } else {
                goldens.compare(&case.output, &ours);
            }
        }
    }
    goldens.report();
}

/// A call that reuses the deep feature of the same call computes the same.
#[test]
fn forward_cached_with_its_own_deep_feature_equals_the_whole_unet() {
    let _no_grad = tch::no_grad_guard();
    let noise = |shape: &[i64]| Tensor::randn(shape, tch::kind::FLOAT_CPU);
    for (name, channels) in [("sd1", 4), ("sd2_base", 4), ("sd2_depth", 5)] {
        for fast in [false, true] {
            let config = read_json(&checkpoint(name).join("unet/config.json")).unwrap();
            let weights = weights(name, "unet", "diffusion_pytorch_model").fast(fast);
            let model = UNet2DConditionModel::new(config, weights).unwrap();
            let time = TimeInput {
                timesteps: &Tensor::from_slice(&[981i64, 41]),
                class_labels: None,
                timestep_cond: None,
                added: None,
            };
            let hidden_states = noise(&[2, 77, model.config().cross_attention_dim]);
            let sample = noise(&[2, channels, 10, 12]);
            let text = model.project_text(&hidden_states, BatchSplit::Joint).unwrap();
            let shifts = model.time_shifts(&time, BatchSplit::Joint).unwrap();
            let input = UNetInput {
                sample: &sample,
                time_shifts: &shifts,
                text: &text,
            };
            let (whole, feature) = model.forward_keeping(&input, BatchSplit::Joint, None, true).unwrap();
            assert_eq!(whole, model.forward(&input, BatchSplit::Joint, None).unwrap());
            let last = model.last_time_shift(&time, BatchSplit::Joint).unwrap();
            let outer = UNetInput {
                sample: &sample,
                time_shifts: &last,
                text: model.last_text(&text),
            };
            assert!(outer.text.len() < text.len());
            let feature = feature.unwrap();
            let cached = model
                .forward_cached(&outer, feature.shallow_clone(), BatchSplit::Joint, None)
                .unwrap();
            assert!(cached.allclose(&whole, 1e-5, 1e-5, false), "{name}, fast {fast}");
            let other = model
                .forward_cached(&outer, feature * 0.5, BatchSplit::Joint, None)
                .unwrap();
            assert!(!other.allclose(&whole, 1e-2, 1e-2, false), "the feature is used");
        }
    }
}

/// Generates the images of requests that share UNet calls as in the engine: each job takes one step in each round.
fn together(pipeline: &mut DiffusionPipeline, requests: Vec<diffusion_request::GenerateRequest>) -> Vec<Vec<u8>> {
    let mut jobs: Vec<_> = requests
        .into_iter()
        .map(|request| pipeline.prepare(request.into()).unwrap())
        .collect();
    while jobs.iter().any(|job| !pipeline.is_done(job)) {
        let mut batches = std::collections::BTreeMap::<Vec<i64>, Vec<_>>::new();
        for job in jobs.iter_mut().filter(|job| !pipeline.is_done(job)) {
            batches.entry(pipeline.batch_entries(job).shape).or_default().push(job);
        }
        for batch in batches.values_mut() {
            for outcome in pipeline.step(batch).unwrap() {
                outcome.unwrap();
            }
        }
    }
    jobs.into_iter()
        .map(|job| {
            let images = pipeline.finish(job).unwrap().images;
            images.iter().flat_map(|image| image.rgb().to_vec()).collect()
        })
        .collect()
}

fn args() -> Vec<Value> {
    vec![
        json!({"num_inference_steps": 6, "seed": 1, "deep_cache": 2}),
        json!({"num_inference_steps": 9, "seed": 2, "deep_cache": 3, "guidance_scale": 1.0,
               "scheduler": "DDIMScheduler"}),
        json!({"num_inference_steps": 5, "seed": 3}),
        json!({"num_inference_steps": 7, "seed": 4, "deep_cache": 2, "num_images_per_prompt": 2,
               "scheduler": "HeunDiscreteScheduler"}),
        json!({"num_inference_steps": 8, "seed": 5, "deep_cache": 5, "decoder": "tiny"}),
    ]
}

#[test]
fn approximated_image_is_the_same_alone_and_with_other_jobs() {
    let _no_grad = tch::no_grad_guard();
    for numerics in [Numerics::Exact, Numerics::Fast] {
        let parameters = ModelParameters {
            numerics,
            ..ModelParameters::default()
        };
        let (mut pipeline, validator) = pipeline("sd1_tiny", &parameters);
        let request = |args: &Value| prepare(&validator, args);
        let alone: Vec<_> = args()
            .iter()
            .map(|args| together(&mut pipeline, vec![request(args)]).remove(0))
            .collect();
        let shared = together(&mut pipeline, args().iter().map(request).collect());
        for (index, (shared, alone)) in shared.iter().zip(&alone).enumerate() {
            assert!(shared == alone, "{numerics:?}: job {index} has another image");
        }
        let mut one = |args: Value| together(&mut pipeline, vec![request(&args)]).remove(0);
        let off = one(json!({"num_inference_steps": 6, "seed": 1, "deep_cache": 1, "decoder": "vae"}));
        assert!(off == one(json!({"num_inference_steps": 6, "seed": 1})));
        assert!(off != alone[0], "deep_cache changes the image");
    }
}
