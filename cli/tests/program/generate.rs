//! `generate` makes the server's images.

use std::fs;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use diffusion_core::config::ModelParameters;
use diffusion_engine::Pipeline;
use diffusion_image::encode;
use diffusion_request::{ElementInputs, Metadata, RequestValidator};
use triton_diffusion::pipelines::{Components, Device, DiffusionPipeline};

use crate::support::{checkpoint, fail, succeed, temporary};

const GEN_ARGS: &str = r#"{"num_inference_steps": 3, "seed": 7, "num_images_per_prompt": 2}"#;

/// What the library makes of a request, encoded.
fn expected(model: &str, inputs: &ElementInputs<'_>) -> Vec<Vec<u8>> {
    let parameters = ModelParameters::default();
    let (components, _) = Components::load(&checkpoint(model), &parameters, Device::Cpu).unwrap();
    let validator = RequestValidator::new(components.model_info(), &parameters).unwrap();
    let request = validator.validate(inputs).unwrap();
    let mut pipeline = DiffusionPipeline::new(components, validator.limits().max_pixels);
    pipeline.init_thread().unwrap();
    let mut job = pipeline.prepare(request.clone().into()).unwrap();
    while !pipeline.is_done(&job) {
        for outcome in pipeline.step(&mut [&mut job]).unwrap() {
            outcome.unwrap();
        }
    }
    let generated = pipeline.finish(job).unwrap();
    let images = generated.images.iter().enumerate();
    images
        .map(|(index, image)| {
            let metadata = Metadata::new(&request, model).of_image(generated.scheduler, index);
            encode(image, &request.output, &metadata, parameters.provenance).unwrap()
        })
        .collect()
}

#[test]
fn generate_from_text_gives_the_images_of_the_server() {
    let folder = temporary();
    let model = checkpoint("sd1").display().to_string();
    let told = succeed(
        folder.path(),
        &[
            "generate",
            &model,
            "--prompt",
            "a red chair",
            "--negative-prompt",
            "blue",
            "--gen-args",
            GEN_ARGS,
            "--out",
            "p.png",
        ],
    );
    assert!(told.contains("seed: 7\n"), "{told}");
    assert!(told.ends_with("p-0.png\np-1.png\n"), "{told}");
    let inputs = ElementInputs {
        prompt: b"a red chair",
        negative_prompt: Some(b"blue"),
        gen_args: Some(GEN_ARGS.as_bytes()),
        ..ElementInputs::default()
    };
    let expected = expected("sd1", &inputs);
    for (index, image) in expected.iter().enumerate() {
        let path = folder.path().join(format!("p-{index}.png"));
        assert!(fs::read(path).unwrap() == *image, "image {index}");
    }
    assert_eq!(expected.len(), 2);
}

#[test]
fn generate_from_an_image_uses_the_format_of_the_extension() {
    let folder = temporary();
    let model = checkpoint("sd1").display().to_string();
    let make = |arguments: &[&str]| {
        let line = ["generate", model.as_str(), "--prompt", "a chair", "--seed", "1"];
        let line: Vec<&str> = line.iter().chain(arguments).copied().collect();
        succeed(folder.path(), &line)
    };
    make(&["--set", "num_inference_steps=2", "--out", "in.png"]);
    make(&[
        "--set",
        "num_inference_steps=2",
        "--image",
        "in.png",
        "--out",
        "out.jpg",
    ]);
    let image = BASE64_STANDARD.encode(fs::read(folder.path().join("in.png")).unwrap());
    let inputs = ElementInputs {
        prompt: b"a chair",
        image: Some(image.as_bytes()),
        gen_args: Some(br#"{"num_inference_steps": 2, "seed": 1, "output_format": "jpeg"}"#),
        ..ElementInputs::default()
    };
    let made = fs::read(folder.path().join("out.jpg")).unwrap();
    assert!(made == expected("sd1", &inputs)[0]);
    assert_eq!(made[..3], [0xff, 0xd8, 0xff]);
}

#[test]
fn generate_returns_the_errors_of_the_server() {
    let folder = temporary();
    let model = checkpoint("sd1").display().to_string();
    let refused = |arguments: &[&str]| {
        let line = ["generate", model.as_str(), "--prompt", "p"];
        let line: Vec<&str> = line.iter().chain(arguments).copied().collect();
        fail(folder.path(), &line)
    };
    for (arguments, words) in [
        (&["--out", "p.png", "--set", "stesp=3"][..], "unknown key `stesp`"),
        (
            &["--out", "p.png", "--set", "eta=2"],
            "`eta` must be a number from 0 to 1",
        ),
        (&["--out", "p.png", "--mask-image", "p.png"], "p.png"),
        (&["--out", "none/p.png"], "none: no such folder"),
        (&["--out", "p.png", "--device", "cuda:0"], "GPU"),
    ] {
        let error = refused(arguments);
        assert!(error.contains(words), "{arguments:?}: {error}");
        assert!(!folder.path().join("p.png").exists());
    }
}
