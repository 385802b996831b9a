//! The description of a model.

use super::*;

fn describe(class: PipelineClass, parameters: &ModelParameters) -> Value {
    let validator = RequestValidator::new(model_info(class), parameters).unwrap();
    Value::Object(validator.describe("PNDMScheduler").unwrap())
}

#[test]
fn every_pipeline_of_a_model_is_described() {
    let description = describe(PipelineClass::StableDiffusion, &ModelParameters::default());
    let pipelines = description["pipelines"].as_object().unwrap();
    let names: Vec<_> = pipelines.keys().map(String::as_str).collect();
    for name in [
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
    ] {
        assert!(names.contains(&name), "{names:?}");
    }
    let text = &pipelines["StableDiffusionPipeline"]["arguments"];
    let steps = json!({ "type": "integer", "minimum": 1, "maximum": 1000, "default": 50 });
    assert_eq!(text["num_inference_steps"], steps);
    assert_eq!(
        text["width"],
        json!({ "type": "integer", "minimum": 8, "multipleOf": 8, "default": 768 })
    );
    assert_eq!(
        text["scheduler"],
        json!({ "type": "string", "enum": SCHEDULERS, "default": "PNDMScheduler" })
    );
    assert_eq!(
        text["preview"],
        json!({ "type": "string", "enum": ["off", "linear", "vae"] })
    );
    assert_eq!(text["decoder"]["enum"], json!(["vae"]));
    assert_eq!(text["seed"].get("default"), None);
    assert_eq!(text.get("strength"), None);
    assert_eq!(
        pipelines["StableDiffusionImg2ImgPipeline"]["arguments"]["strength"]["default"],
        0.8
    );
    assert_eq!(description["max_pixels"], 4_194_304);
    let upscaler = describe(PipelineClass::Upscale, &ModelParameters::default());
    let noise = &upscaler["pipelines"]["StableDiffusionUpscalePipeline"]["arguments"]["noise_level"];
    assert_eq!((&noise["default"], &noise["maximum"]), (&json!(20), &json!(350)));
}

#[test]
fn description_has_the_parameters_of_the_model() {
    let parameters = ModelParameters {
        max_steps: Some(30),
        max_unet_batch_size: Some(4),
        max_pixels: Some(1 << 20),
        default_gen_args: r#"{"num_inference_steps": 20, "scheduler": "DDIMScheduler", "progress_every": 2,
            "preview": "vae"}"#
            .into(),
        ..ModelParameters::default()
    };
    let description = describe(PipelineClass::StableDiffusion, &parameters);
    let arguments = &description["pipelines"]["StableDiffusionPipeline"]["arguments"];
    let of = |name: &str, key: &str| arguments[name][key].clone();
    assert_eq!(of("num_inference_steps", "maximum"), 30);
    assert_eq!(of("num_inference_steps", "default"), 20);
    assert_eq!(of("num_images_per_prompt", "maximum"), 4);
    assert_eq!(of("scheduler", "default"), "DDIMScheduler");
    assert_eq!(of("progress_every", "default"), 2);
    assert_eq!(of("preview", "default"), "vae");
    assert_eq!(description["max_pixels"], 1 << 20);
}

#[test]
fn model_with_a_safety_checker_has_no_previews() {
    let model = ModelInfo {
        safety_checker: true,
        tiny_decoder: true,
        ..model_info(PipelineClass::StableDiffusion)
    };
    let validator = RequestValidator::new(model, &ModelParameters::default()).unwrap();
    let description = Value::Object(validator.describe("PNDMScheduler").unwrap());
    let arguments = &description["pipelines"]["StableDiffusionPipeline"]["arguments"];
    assert_eq!(arguments.get("preview"), None);
    assert_eq!(arguments["decoder"]["enum"], json!(["vae", "tiny"]));
}

#[test]
fn description_is_asked_for_by_its_key_alone() {
    let validator = validator();
    for (args, asks) in [
        (r#"{"describe": true}"#, true),
        (r#"{"describe": true, "seed": null}"#, true),
        (r#"{"describe": false}"#, false),
        (r#"{"describe": true, "seed": 1}"#, false),
        ("", false),
    ] {
        assert_eq!(
            validator.asks_for_description(Some(args.as_bytes())),
            Ok(asks),
            "{args}"
        );
    }
    assert_eq!(validator.asks_for_description(None), Ok(false));
    assert!(validator.asks_for_description(Some(b"{")).is_err());
    let error = message(r#"{"describe": true, "seed": 1}"#);
    assert!(error.contains("`describe` must be the only key"), "{error}");
    assert!(validate(b"", None, Some(br#"{"describe": false}"#), &validator).is_ok());
}
