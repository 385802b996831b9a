//! Images before the final response, and the description of a model.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};
use triton_api::ErrorCode;
use triton_fake::{FakeInstance, FakeRequest, FakeResponse, FakeServer, ModelSpec, ParameterValue};

use crate::gpu::support::{pipelines, request as request_of};
use crate::progress::{decoupled, integer, responses};
use crate::support::*;

const STEPS: usize = 40;

fn previews_of(response: &FakeResponse) -> Vec<Vec<u8>> {
    let output = response.outputs.get(OUTPUT);
    let texts = output.map(|output| output.strings().unwrap()).unwrap_or_default();
    texts.iter().map(|text| BASE64_STANDARD.decode(text).unwrap()).collect()
}

fn ask_for_previews(server: &FakeServer, preview: &str, more: Value) -> FakeRequest {
    let mut args = json!({"num_inference_steps": STEPS, "seed": 1, "scheduler": "DDIMScheduler"});
    args["progress_every"] = 1.into();
    args["preview"] = preview.into();
    for (key, value) in more.as_object().unwrap() {
        args[key] = value.clone();
    }
    ask(server, &args)
}

/// The mean of the squared differences of two images of one size.
fn error(one: &[u8], other: &[u8]) -> f64 {
    let (one, other) = (pixels(one), pixels(other));
    assert_eq!(one.len(), other.len());
    let squares = one
        .iter()
        .zip(&other)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
    squares.sum::<f64>() / one.len() as f64
}

/// An image whose sides are `factor` times shorter: each pixel is the mean of a square.
fn smaller(file: &[u8], factor: u32) -> Vec<f64> {
    let ((width, height), rgb) = (png_size(file), pixels(file));
    let mean = |x: u32, y: u32, channel: u32| {
        let squares = (0..factor * factor).map(|at| (x * factor + at % factor, y * factor + at / factor));
        let values = squares.map(|(x, y)| f64::from(rgb[((y * width + x) * 3 + channel) as usize]));
        values.sum::<f64>() / f64::from(factor * factor)
    };
    let places = (0..height / factor).flat_map(|y| (0..width / factor).map(move |x| (x, y)));
    places
        .flat_map(|(x, y)| (0..3).map(move |channel| mean(x, y, channel)))
        .collect()
}

#[test]
fn decoded_previews_come_near_the_image() {
    serve_checkpoint("sd1_tiny", decoupled, |server, instance| {
        let mut images = Vec::new();
        for (preview, decoder) in [("vae", "vae"), ("tiny", "tiny")] {
            let request = ask_for_previews(server, preview, json!({"decoder": decoder}));
            instance.execute(&[&request]).unwrap();
            let (before, last) = responses(&request);
            let image = previews_of(&last).remove(0);
            let mut seen = Vec::new();
            for response in &before {
                let [preview] = &previews_of(response)[..] else {
                    unreachable!("one image in each response");
                };
                assert_eq!(png_size(preview), png_size(&image));
                seen.push((integer(response, "step").unwrap(), error(preview, &image)));
            }
            let ((first, far), (latest, near)) = (seen[0], seen[seen.len() - 1]);
            assert!(first < 10 && latest > 30, "{seen:?}");
            assert!(near < far / 4.0, "{preview}: {seen:?}");
            images.push(image);
        }
        // Previews change nothing.
        for (image, decoder) in images.iter().zip(["vae", "tiny"]) {
            let plain =
                json!({"num_inference_steps": STEPS, "seed": 1, "scheduler": "DDIMScheduler", "decoder": decoder});
            let plain = ask(server, &plain);
            instance.execute(&[&plain]).unwrap();
            assert_eq!(&crate::support::images(&plain)[0], image);
        }
    });
}

#[test]
fn linear_previews_are_small_and_look_like_the_image() {
    serve_as(decoupled, |server, instance| {
        let request = ask_for_previews(server, "linear", json!({"num_images_per_prompt": 2}));
        instance.execute(&[&request]).unwrap();
        let (before, last) = responses(&request);
        let images = previews_of(&last);
        let latest = before.last().unwrap();
        assert!(integer(latest, "step").unwrap() > 30);
        let previews = previews_of(latest);
        assert_eq!(previews.len(), 2);
        for (preview, image) in previews.iter().zip(&images) {
            let (width, height) = png_size(image);
            let (small_width, small_height) = png_size(preview);
            let factor = width / small_width;
            assert_eq!((small_width * factor, small_height * factor), (width, height));
            assert!(factor >= 4, "{factor}");
            let small = pixels(preview);
            assert!(small.iter().any(|value| *value != small[0]), "an image of one color");
            assert_eq!(smaller(image, factor).len(), small.len());
        }
    });
}

#[test]
fn previews_have_the_format_of_the_request() {
    serve_as(decoupled, |server, instance| {
        let request = ask_for_previews(server, "linear", json!({"output_format": "jpeg", "quality": 90}));
        instance.execute(&[&request]).unwrap();
        let (before, last) = responses(&request);
        for response in before.iter().chain([&last]) {
            assert!(
                previews_of(response)
                    .iter()
                    .all(|file| file.starts_with(b"\xff\xd8\xff"))
            );
        }
        assert!(!previews_of(&before[0]).is_empty());
    });
}

#[test]
fn every_pipeline_has_previews() {
    for case in pipelines() {
        let change = |spec: ModelSpec| decoupled(spec).parameter("safety_checker", "off");
        serve_checkpoint(case.checkpoint, change, |server, instance| {
            for preview in ["linear", "vae"] {
                let mut args = case.gen_args.clone();
                args["num_inference_steps"] = 6.into();
                args["progress_every"] = 1.into();
                args["preview"] = preview.into();
                let request = request_of(server, &args, &case.inputs);
                instance.execute(&[&request]).unwrap();
                let (before, last) = responses(&request);
                assert!(last.error.is_none(), "{}: {:?}", case.name, last.error);
                let count = previews_of(&last).len();
                let with_images = before.iter().filter(|response| previews_of(response).len() == count);
                assert!(with_images.count() > 0, "{}, {preview}", case.name);
            }
        });
    }
}

#[test]
fn safety_checker_refuses_previews() {
    serve_checkpoint("sd1_safety", decoupled, |server, instance| {
        let request = ask_for_previews(server, "linear", json!({}));
        instance.execute(&[&request]).unwrap();
        let (code, message) = refusal(&request);
        assert_eq!(code, ErrorCode::InvalidArg);
        assert_says(&message, &["`preview`", "safety checker"]);
    });
}

fn description(server: &FakeServer, instance: &FakeInstance<'_>) -> Value {
    let request = ask(server, &json!({"describe": true}));
    instance.execute(&[&request]).unwrap();
    let response = answer(&request).unwrap();
    assert!(response.outputs.is_empty());
    match &response.parameters["description"] {
        ParameterValue::String(text) => serde_json::from_str(text).unwrap(),
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn model_describes_itself() {
    let decoupled_model = |spec: ModelSpec| decoupled(spec).parameter("max_steps", "60");
    serve_as(decoupled_model, |server, instance| {
        let description = description(server, instance);
        assert_eq!(description["decoupled"], true);
        assert_eq!(
            (&description["loras"], &description["embeddings"]),
            (&json!([]), &json!([]))
        );
        let pipelines = description["pipelines"].as_object().unwrap();
        assert_eq!(pipelines.len(), 3);
        let arguments = &pipelines["StableDiffusionPipeline"]["arguments"];
        assert_eq!(arguments["num_inference_steps"]["maximum"], 60);
        assert_eq!(arguments["preview"]["enum"], json!(["off", "linear", "vae"]));
        // The arguments are those of a request.
        let classes = arguments["scheduler"]["enum"].as_array().unwrap();
        assert!(classes.contains(&arguments["scheduler"]["default"]));
        let mut args = json!({"seed": 1});
        for (name, schema) in arguments.as_object().unwrap() {
            if let Some(default) = schema.get("default") {
                args[name] = default.clone();
            }
        }
        for request in [args, json!({"seed": 1})].map(|args| ask(server, &args)) {
            instance.execute(&[&request]).unwrap();
            assert_eq!(images(&request).len(), 1);
        }
    });
    serve(|server, instance| {
        let description = description(server, instance);
        assert_eq!(description["decoupled"], false);
        let arguments = &description["pipelines"]["StableDiffusionPipeline"]["arguments"];
        assert_eq!(
            (arguments.get("preview"), arguments.get("progress_every")),
            (None, None)
        );
        let several = infer_elements(server, &["a", "b"], &[json!({"describe": true}), json!({})]);
        instance.execute(&[&several]).unwrap();
        assert_says(&refusal(&several).1, &["`describe`", "one batch element"]);
    });
}
