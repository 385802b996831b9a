#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
mod describe;
mod images;

use std::time::Duration;

use super::*;
use crate::{Decoder, LoraRequest, Preview, PromptSyntax, Text2Img};
use proptest::prelude::*;
use serde_json::{Value, json};

const SCHEDULERS: &[&str] = &["DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"];

fn validator_of(parameters: &ModelParameters) -> Result<RequestValidator> {
    RequestValidator::new(model_info(PipelineClass::StableDiffusion), parameters)
}

fn model_info(class: PipelineClass) -> ModelInfo {
    ModelInfo {
        class,
        default_height: 512,
        default_width: 768,
        vae_scale_factor: 8,
        num_text_layers: 12,
        guidance_embedding: false,
        max_noise_level: 350,
        tiny_decoder: false,
        safety_checker: false,
        schedulers: SCHEDULERS,
    }
}

/// Validates a batch element of texts.
fn validate(
    prompt: &[u8],
    negative_prompt: Option<&[u8]>,
    gen_args: Option<&[u8]>,
    validator: &RequestValidator,
) -> Result<GenerateRequest> {
    let inputs = ElementInputs {
        prompt,
        negative_prompt,
        gen_args,
        ..ElementInputs::default()
    };
    validator.validate(&inputs)
}

fn validator() -> RequestValidator {
    validator_of(&ModelParameters::default()).unwrap()
}

/// Of a model with an `AutoencoderTiny`.
fn tiny_validator() -> RequestValidator {
    let model = ModelInfo {
        tiny_decoder: true,
        ..model_info(PipelineClass::StableDiffusion)
    };
    RequestValidator::new(model, &ModelParameters::default()).unwrap()
}

fn plain(prompt: &str, negative_prompt: &str) -> Prompts {
    Prompts::parse(PromptSyntax::Plain, prompt.into(), negative_prompt.into()).unwrap()
}

fn with_defaults(gen_args: &str) -> ModelParameters {
    ModelParameters {
        default_gen_args: gen_args.to_owned(),
        ..ModelParameters::default()
    }
}

fn validate_args(gen_args: &str) -> Result<GenerateRequest> {
    validate(b"a cat", None, Some(gen_args.as_bytes()), &validator())
}

fn message(gen_args: &str) -> String {
    match validate_args(gen_args) {
        Err(Error::InvalidArgument(message)) => message,
        other => panic!("{gen_args}: {other:?}"),
    }
}

/// diffusers' latents have the whole part of height / factor lines, so its images are smaller than such a `height`.
#[test]
fn size_from_args_is_rounded_down_to_the_scale_factor() {
    let model = ModelInfo {
        vae_scale_factor: 16,
        ..model_info(PipelineClass::StableDiffusion)
    };
    let validator = RequestValidator::new(model, &ModelParameters::default()).unwrap();
    let size = |gen_args: &str| {
        let request = validate(b"", None, Some(gen_args.as_bytes()), &validator)?;
        Ok((request.height, request.width))
    };
    assert_eq!(size(r#"{"height": 72, "width": 64}"#), Ok((64, 64)));
    let error = Error::invalid_argument("gen_args: `height` and `width` must be at least 16");
    assert_eq!(size(r#"{"height": 8, "width": 64}"#), Err(error));
}

#[test]
fn prompt_alone_gets_the_defaults_of_diffusers() {
    for gen_args in [None, Some(&b""[..]), Some(&b"{}"[..])] {
        let request = validate("a \"naïve\" cat".as_bytes(), None, gen_args, &validator()).unwrap();
        assert!(request.seed < 1 << 32);
        let expected = GenerateRequest {
            prompts: plain("a \"naïve\" cat", ""),
            inputs: PipelineInputs::Text2Img(Text2Img),
            height: 512,
            width: 768,
            num_inference_steps: 50,
            guidance_scale: 7.5,
            guidance_embedding: false,
            num_images_per_prompt: 1,
            eta: 0.0,
            guidance_rescale: 0.0,
            clip_skip: None,
            timesteps: None,
            sigmas: None,
            seed: request.seed,
            loras: Vec::new(),
            scheduler: None,
            deep_cache: 1,
            decoder: Decoder::Vae,
            output: OutputFormat::Png,
            timeout: None,
            progress_every: None,
            preview: None,
            xl: None,
        };
        assert_eq!(request, expected);
        assert!(request.do_classifier_free_guidance());
        assert_eq!(request.unet_batch_size(), 2);
    }
}

#[test]
fn absent_seed_is_random() {
    let seeds: std::collections::HashSet<u64> = (0..8).map(|_| validate_args("{}").unwrap().seed).collect();
    assert!(seeds.len() > 1, "8 equal seeds of 32 bits");
}

#[test]
fn sagemaker_example_is_valid() {
    let request = validate(
        b"Infinity pool on top of a high rise overlooking Central Park",
        Some(b"blur, signature, low detail, low quality"),
        Some(br#"{"num_inference_steps": 50, "guidance_scale": 8}"#),
        &validator(),
    )
    .unwrap();
    assert_eq!(
        request.prompts.negative_prompt,
        "blur, signature, low detail, low quality"
    );
    assert_eq!((request.num_inference_steps, request.guidance_scale), (50, 8.0));
}

#[test]
fn request_overrides_model_and_model_overrides_pipeline() {
    let parameters = with_defaults(
        r#"{"num_inference_steps": 25, "seed": 7, "output_format": "jpeg", "scheduler": "DDIMScheduler"}"#,
    );
    let validator = validator_of(&parameters).unwrap();
    let request = validate(b"", None, Some(br#"{"seed": 8, "eta": 1}"#), &validator).unwrap();
    assert_eq!(request.num_inference_steps, 25);
    assert_eq!((request.seed, request.eta), (8, 1.0));
    assert_eq!(request.output, OutputFormat::Jpeg { quality: 75 });
    assert_eq!(request.scheduler.as_deref(), Some("DDIMScheduler"));
    let request = validate(b"", None, Some(br#"{"sigmas": [9, 1]}"#), &validator).unwrap();
    assert_eq!(request.num_inference_steps, 2);
}

#[test]
fn size_beyond_max_pixels_is_refused() {
    let size = |args: &str| validate_args(args).map(|r| (r.height, r.width)).unwrap();
    assert_eq!(size(r#"{"height": 64}"#), (64, 768));
    assert_eq!(size(r#"{"width": 64, "height": 0}"#), (512, 64));
    assert_eq!(size(r#"{"width": 2048, "height": 2048}"#), (2048, 2048));
    for args in [
        r#"{"width": 2056, "height": 2048}"#,
        r#"{"width": 9223372036854775808, "height": 8}"#,
        r#"{"width": 18446744073709551608, "height": 18446744073709551608}"#,
        r#"{"width": 4294967304, "height": 8}"#,
    ] {
        let message = message(args);
        assert!(message.ends_with("is more than max_pixels 4194304"), "{message}");
    }
}

#[test]
fn work_is_limited() {
    let parameters = ModelParameters {
        max_work: Some(2 * 64 * 64 * 30),
        ..with_defaults(r#"{"height": 64, "width": 64, "num_inference_steps": 30}"#)
    };
    let validator = validator_of(&parameters).unwrap();
    let with = |gen_args: &str| validate(b"", None, Some(gen_args.as_bytes()), &validator);
    assert!(with("{}").is_ok());
    let error = Error::invalid_argument(
        "gen_args: a UNet batch size of 2, 4096 pixels and 31 steps multiply to 253952, more than max_work 245760",
    );
    assert_eq!(with(r#"{"num_inference_steps": 31}"#), Err(error));
    assert!(with(r#"{"num_inference_steps": 60, "guidance_scale": 1}"#).is_ok());
}

#[test]
fn timeout_is_read() {
    let request = validate_args(r#"{"timeout_ms": 1500}"#).unwrap();
    assert_eq!(request.timeout, Some(Duration::from_millis(1500)));
    assert!(
        !request.gen_args().contains_key("timeout_ms"),
        "the image does not depend on it"
    );
}

#[test]
fn progress_is_asked_for_by_a_number_of_steps() {
    for (gen_args, expected) in [
        (r#"{"progress_every": 2}"#, Some(2)),
        (r#"{"progress_every": 0}"#, None),
        ("{}", None),
    ] {
        let request = validate_args(gen_args).unwrap();
        assert_eq!(request.progress_every, expected, "{gen_args}");
        assert!(
            !request.gen_args().contains_key("progress_every"),
            "the image does not depend on it"
        );
    }
}

#[test]
fn unet_batch_size_is_limited() {
    assert_eq!(
        validate_args(r#"{"num_images_per_prompt": 8}"#)
            .unwrap()
            .unet_batch_size(),
        16
    );
    assert_eq!(
        message(r#"{"num_images_per_prompt": 9}"#),
        "gen_args: `num_images_per_prompt` 9, doubled by guidance, needs a UNet batch size of 18, more than max_unet_batch_size 16"
    );
    let request = validate_args(r#"{"num_images_per_prompt": 16, "guidance_scale": 1.0}"#).unwrap();
    assert!(!request.do_classifier_free_guidance());
    assert_eq!(request.unet_batch_size(), 16);
    assert_eq!(
        message(r#"{"num_images_per_prompt": 17, "guidance_scale": 0}"#),
        "gen_args: `num_images_per_prompt` 17 needs a UNet batch size of 17, more than max_unet_batch_size 16"
    );
}

#[test]
fn approximations_are_off_unless_requested() {
    for args in [
        "{}",
        r#"{"deep_cache": null, "decoder": null}"#,
        r#"{"deep_cache": 1, "decoder": "vae"}"#,
    ] {
        let request = validate_args(args).unwrap();
        assert_eq!((request.deep_cache, request.decoder), (1, Decoder::Vae), "{args}");
        let recorded = request.gen_args();
        assert!(
            !recorded.contains_key("deep_cache") && !recorded.contains_key("decoder"),
            "{args}"
        );
    }
    let args = br#"{"deep_cache": 10, "decoder": "tiny"}"#;
    let request = validate(b"", None, Some(args), &tiny_validator()).unwrap();
    assert_eq!((request.deep_cache, request.decoder), (10, Decoder::Tiny));
    assert_eq!(request.gen_args()["deep_cache"], 10);
    assert_eq!(request.gen_args()["decoder"], "tiny");
}

#[test]
fn tiny_decoder_that_the_model_lacks_is_refused() {
    let missing =
        "`decoder` tiny requires an AutoencoderTiny in the folder vae_tiny of the model; this model has vae only";
    assert_eq!(message(r#"{"decoder": "tiny"}"#), format!("gen_args: {missing}"));
    let error = validator_of(&with_defaults(r#"{"decoder": "tiny"}"#)).unwrap_err();
    assert!(error.to_string().ends_with(missing), "{error}");
}

#[test]
fn previews_are_those_that_the_model_has() {
    let preview = |validator: &RequestValidator, args: &str| {
        let request = validate(b"", None, Some(args.as_bytes()), validator);
        request
            .map(|request| (request.progress_every, request.preview))
            .map_err(|error| error.to_string())
    };
    let (plain, tiny) = (validator(), tiny_validator());
    assert_eq!(preview(&plain, "{}"), Ok((None, None)));
    let linear = r#"{"preview": "linear", "progress_every": 3}"#;
    assert_eq!(preview(&plain, linear), Ok((Some(3), Some(Preview::Linear))));
    for without in [r#"{"preview": "vae"}"#, r#"{"preview": "vae", "progress_every": 0}"#] {
        assert_eq!(preview(&plain, without), Ok((None, None)));
    }
    let off = r#"{"preview": "off", "progress_every": 3}"#;
    assert_eq!(preview(&plain, off), Ok((Some(3), None)));
    let of_tiny = r#"{"preview": "tiny", "progress_every": 1}"#;
    assert_eq!(preview(&tiny, of_tiny), Ok((Some(1), Some(Preview::Tiny))));
    let checked = RequestValidator::new(
        ModelInfo {
            safety_checker: true,
            ..model_info(PipelineClass::StableDiffusion)
        },
        &ModelParameters::default(),
    );
    for (validator, args, words) in [
        (&plain, of_tiny, "vae_tiny"),
        (&checked.unwrap(), linear, "safety checker"),
    ] {
        let error = preview(validator, args).unwrap_err();
        assert!(
            error.starts_with("gen_args: `preview`") && error.contains(words),
            "{error}"
        );
    }
}

#[test]
fn guidance_embedding_does_not_double_the_batch() {
    let model = ModelInfo {
        guidance_embedding: true,
        ..model_info(PipelineClass::StableDiffusion)
    };
    // A batch of one, and the default guidance scale: the model loads.
    let parameters = ModelParameters {
        max_unet_batch_size: Some(1),
        ..ModelParameters::default()
    };
    let validator = RequestValidator::new(model, &parameters).unwrap();
    let args = br#"{"guidance_scale": 8}"#;
    let request = validate(b"", None, Some(args), &validator).unwrap();
    assert!(request.guidance_embedding);
    assert!(!request.do_classifier_free_guidance());
    assert_eq!((request.guidance_scale, request.unet_batch_size()), (8.0, 1));
    let args = br#"{"guidance_scale": 8, "num_images_per_prompt": 2}"#;
    let error = validate(b"", None, Some(args), &validator).unwrap_err();
    assert_eq!(
        error.to_string(),
        "gen_args: `num_images_per_prompt` 2 needs a UNet batch size of 2, more than max_unet_batch_size 1"
    );
}

#[test]
fn prompts_are_parsed_by_their_syntax() {
    let bad = b"(QZXJ:11)";
    let weighted = &br#"{"prompt_syntax": "weighted"}"#[..];
    let fails = |prompt: &[u8], negative: &[u8], args: &[u8], validator: &RequestValidator| {
        let error = validate(prompt, Some(negative), Some(args), validator).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)));
        assert!(!error.to_string().contains("QZXJ"));
        error.to_string()
    };
    let validator = validator();
    let why = "`prompt_syntax` weighted: a weight, multiplied by the weights of the brackets around it, must be a number from -10 to 10";
    assert_eq!(fails(bad, b"", weighted, &validator), format!("prompt: {why}"));
    assert_eq!(
        fails(b"(a:1.3)", bad, weighted, &validator),
        format!("negative_prompt: {why}")
    );
    let deep = [&b"[(".repeat(65)[..], b"QZXJ"].concat();
    assert!(fails(&deep, b"", weighted, &validator).starts_with("prompt: `prompt_syntax` weighted:"));
    for plain in [&br#"{"prompt_syntax": "plain"}"#[..], b"{}"] {
        let request = validate(bad, Some(bad), Some(plain), &validator).unwrap();
        assert_eq!(request.prompts.syntax(), PromptSyntax::Plain);
    }
    // A model's default holds as for any other key.
    let own = validator_of(&with_defaults(r#"{"prompt_syntax": "weighted"}"#)).unwrap();
    assert!(fails(bad, b"", b"", &own).starts_with("prompt: "));
    let request = validate(b"(a:2)", None, None, &own).unwrap();
    assert_eq!(request.prompts.syntax(), PromptSyntax::Weighted);
    assert_eq!(request.gen_args()["prompt_syntax"], "weighted");
    assert_eq!(request.prompts.prompt, "(a:2)");
    validate(bad, None, Some(br#"{"prompt_syntax": "plain"}"#), &own).unwrap();
}

#[test]
fn steps_agree_with_lists_and_limits() {
    assert_eq!(
        message(r#"{"num_inference_steps": 3, "timesteps": [5, 2]}"#),
        "gen_args: `num_inference_steps` 3 is not the number of `timesteps`, 2; give one of the two"
    );
    let request = validate_args(r#"{"num_inference_steps": 2, "timesteps": [5, 2]}"#).unwrap();
    assert_eq!(request.timesteps, Some(vec![5, 2]));
    let parameters = ModelParameters {
        max_steps: Some(20),
        ..with_defaults(r#"{"num_inference_steps": 20}"#)
    };
    let validator = validator_of(&parameters).unwrap();
    let sigmas = format!("{{\"sigmas\": [{}]}}", ["1.5"; 21].join(","));
    for (args, name) in [
        (r#"{"num_inference_steps": 21}"#, "num_inference_steps"),
        (&*sigmas, "sigmas"),
    ] {
        let error = validate(b"", None, Some(args.as_bytes()), &validator).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("gen_args: 21 steps of `{name}` are more than max_steps 20")
        );
    }
}

#[test]
fn clip_skip_beyond_the_layers_is_refused() {
    assert_eq!(validate_args(r#"{"clip_skip": 12}"#).unwrap().clip_skip, Some(12));
    assert_eq!(
        message(r#"{"clip_skip": 13}"#),
        "gen_args: `clip_skip` must be an integer from 0 to 12, the number of text encoder layers"
    );
}

#[test]
fn unknown_scheduler_is_refused() {
    let request = validate_args(r#"{"scheduler": "PNDMScheduler"}"#).unwrap();
    assert_eq!(request.scheduler.as_deref(), Some("PNDMScheduler"));
    let list = "DDIMScheduler, PNDMScheduler, DPMSolverMultistepScheduler";
    assert_eq!(
        message(r#"{"scheduler": "DDIMSheduler"}"#),
        format!("gen_args: `scheduler` must be one of {list}; did you mean `DDIMScheduler`?")
    );
    assert_eq!(
        message(r#"{"scheduler": "out of memory"}"#),
        format!("gen_args: `scheduler` must be one of {list}")
    );
}

#[test]
fn output_format_decides_quality_and_sides() {
    for (args, output) in [
        (r#"{"output_format": "png"}"#, OutputFormat::Png),
        (r#"{"output_format": "jpeg"}"#, OutputFormat::Jpeg { quality: 75 }),
        (r#"{"output_format": "webp"}"#, OutputFormat::Webp { quality: 80 }),
        (
            r#"{"output_format": "webp", "quality": 1}"#,
            OutputFormat::Webp { quality: 1 },
        ),
    ] {
        assert_eq!(validate_args(args).unwrap().output, output);
    }
    assert!(message(r#"{"quality": 90}"#).starts_with("gen_args: `quality` requires"));
    let wide = |format: &str, width: u32| {
        validate_args(&format!(
            r#"{{"height": 8, "width": {width}, "output_format": "{format}"}}"#
        ))
    };
    assert!(wide("png", 524_288).is_ok());
    assert!(wide("jpeg", 65_528).is_ok());
    assert!(wide("jpeg", 65_536).is_err());
    assert!(wide("webp", 16_376).is_ok());
    assert!(wide("webp", 16_384).is_err());
}

#[test]
fn errors_name_the_input() {
    let validator = validator();
    let long = vec![b'a'; (64 << 10) + 1];
    let bad = &b"caf\xe9"[..];
    let fails = |prompt: &[u8], negative: Option<&[u8]>, args: Option<&[u8]>| {
        let error = validate(prompt, negative, args, &validator).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)));
        error.to_string()
    };
    assert_eq!(fails(bad, None, None), "prompt: not valid UTF-8 at byte 3");
    assert_eq!(
        fails(b"", Some(bad), None),
        "negative_prompt: not valid UTF-8 at byte 3"
    );
    assert_eq!(fails(b"", None, Some(bad)), "gen_args: not valid UTF-8 at byte 3");
    let limit = "65537 bytes exceed the limit of 65536";
    assert_eq!(fails(&long, None, None), format!("prompt: {limit}"));
    assert_eq!(fails(b"", Some(&long), None), format!("negative_prompt: {limit}"));
    assert_eq!(fails(b"", None, Some(&long)), format!("gen_args: {limit}"));
    assert!(validate(&long[1..], None, None, &validator).is_ok());
    assert_eq!(
        message(r#"{"strength": 0.5}"#),
        "gen_args: `strength` is not supported by StableDiffusionPipeline"
    );
}

#[test]
fn defaults_that_cannot_be_served_fail_the_load() {
    let fails = |parameters: &ModelParameters| match validator_of(parameters) {
        Err(Error::InvalidArgument(message)) => message,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        fails(&with_defaults(r#"{"noise_level": 5}"#)),
        "parameter `default_gen_args`: `noise_level` is not supported by StableDiffusionPipeline, \
         StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline"
    );
    assert!(fails(&with_defaults(r#"{"quality": 90}"#)).contains("`quality`"));
    let parameters = ModelParameters {
        max_unet_batch_size: Some(1),
        ..ModelParameters::default()
    };
    assert!(fails(&parameters).contains("max_unet_batch_size 1"));
    let parameters = ModelParameters {
        max_pixels: Some(64),
        ..ModelParameters::default()
    };
    assert!(fails(&parameters).contains("max_pixels 64"));
    let parameters = ModelParameters {
        scheduler: Some("Ddim".into()),
        ..ModelParameters::default()
    };
    assert!(fails(&parameters).starts_with("model parameters: `scheduler` must be one of"));
}

#[test]
fn default_gen_args_are_checked_as_gen_args() {
    let error = validator_of(&with_defaults(r#"{"guidance_scale": "high"}"#)).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("parameter `default_gen_args`: "), "{text}");
    assert!(text.contains("`guidance_scale`"), "{text}");
    assert!(!text.contains("high"), "{text}");
    for args in [r#"{"describe": true}"#, r#"{"preview": "tiny"}"#] {
        assert!(validator_of(&with_defaults(args)).is_err(), "{args}");
    }
}

proptest! {
    /// No error quotes a text of the three inputs.
    #[test]
    fn errors_hold_no_text_of_the_user(
        prompt in "[a-z ]{0,4}QZXJ[ -~]{0,9}",
        scheduler in "([A-Za-z]{0,4}QZXJ[ -~]{0,4}|DDIMQZXJ|DDIMScheduler QZXJ)",
        broken in 0usize..3,
    ) {
        let args = json!({ "scheduler": scheduler }).to_string();
        let mut inputs = [prompt.clone().into_bytes(), prompt.into_bytes(), args.into_bytes()];
        inputs[broken].push(0xff);
        for inputs in [inputs.clone(), inputs.map(|bytes| bytes.into_iter().filter(|b| *b != 0xff).collect())] {
            let [prompt, negative, args] = &inputs;
            let error = validate(prompt, Some(negative), Some(args), &validator()).unwrap_err();
            prop_assert!(!error.to_string().contains("QZXJ"), "{error}");
        }
    }

    /// The result of `gen_args()` sent again gives the same request.
    #[test]
    fn gen_args_sent_again_give_the_same_request(
        (height, width) in (1u32..128, 1u32..128),
        steps in 0usize..3,
        (guidance, eta, rescale) in (0.0..100.0f64, 0.0..=1.0f64, 0.0..=1.0f64),
        images in 1usize..=8,
        syntax in 0..PromptSyntax::ALL.len(),
        clip_skip in prop::option::of(0usize..=12),
        seed in 0..=i64::MAX as u64,
        scheduler in 0..SCHEDULERS.len(),
        (format, quality) in (0usize..3, 1u8..=100),
        sigmas in prop::collection::vec(0.001..1000.0f64, 1..9),
        (deep_cache, decoder) in (1usize..=10, 0..Decoder::ALL.len()),
        scales in prop::collection::vec((-10.0..=10.0f64, -10.0..=10.0f64), 0..=8),
    ) {
        let loras = scales.iter().enumerate().map(|(index, &(scale, text_encoder_scale))| LoraRequest {
            name: format!("lora-{index}"),
            scale,
            text_encoder_scale,
        });
        let request = GenerateRequest {
            loras: loras.collect(),
            inputs: PipelineInputs::Text2Img(Text2Img),
            prompts: Prompts::parse(PromptSyntax::ALL[syntax].1, "a".into(), "b".into()).unwrap(),
            height: height * 8,
            width: width * 8,
            num_inference_steps: sigmas.len(),
            guidance_scale: guidance,
            guidance_embedding: false,
            num_images_per_prompt: images,
            eta,
            guidance_rescale: rescale,
            clip_skip,
            timesteps: (steps == 1).then(|| (0..sigmas.len() as i64).rev().map(|t| t * 9).collect()),
            sigmas: (steps == 2).then(|| sigmas.clone()),
            seed,
            scheduler: Some(SCHEDULERS[scheduler].into()),
            deep_cache,
            decoder: Decoder::ALL[decoder].1,
            output: [OutputFormat::Png, OutputFormat::Jpeg { quality }, OutputFormat::Webp { quality }][format],
            timeout: None,
            progress_every: None,
            preview: None,
            xl: None,
        };
        let mut args = request.gen_args();
        args.insert("scheduler".into(), SCHEDULERS[scheduler].into());
        let args = Value::Object(args).to_string();
        let again = validate(b"a", Some(b"b"), Some(args.as_bytes()), &tiny_validator()).unwrap();
        prop_assert_eq!(again, request);
    }
}
