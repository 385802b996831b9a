#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
mod images;

use super::*;
use crate::prompt_syntax::PromptSyntax;
use diffusion_image::output_format::OutputFormat;
use proptest::prelude::*;
use serde_json::{Value, json};

const SCHEDULERS: &[&str] = &["DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"];

fn context_of(parameters: &ModelParameters) -> Result<RequestContext> {
    RequestContext::new(capabilities(PipelineClass::StableDiffusion), parameters)
}

fn capabilities(class: PipelineClass) -> Capabilities {
    Capabilities {
        class,
        default_height: 512,
        default_width: 768,
        vae_scale_factor: 8,
        num_text_layers: 12,
        guidance_embedding: false,
        max_noise_level: 350,
        schedulers: SCHEDULERS,
    }
}

/// A row of texts.
fn resolve(
    prompt: &[u8],
    negative_prompt: Option<&[u8]>,
    gen_args: Option<&[u8]>,
    context: &RequestContext,
) -> Result<GenerateRequest> {
    let row = RowInputs {
        prompt,
        negative_prompt,
        gen_args,
        ..RowInputs::default()
    };
    super::resolve(&row, context)
}

fn context() -> RequestContext {
    context_of(&ModelParameters::default()).unwrap()
}

fn with_defaults(gen_args: &str) -> ModelParameters {
    ModelParameters {
        default_gen_args: gen_args.to_owned(),
        ..ModelParameters::default()
    }
}

fn resolve_args(gen_args: &str) -> Result<GenerateRequest> {
    resolve(b"a cat", None, Some(gen_args.as_bytes()), &context())
}

fn message(gen_args: &str) -> String {
    match resolve_args(gen_args) {
        Err(Error::InvalidArgument(message)) => message,
        other => panic!("{gen_args}: {other:?}"),
    }
}

#[test]
fn a_prompt_alone_gets_the_defaults_of_diffusers() {
    for gen_args in [None, Some(&b""[..]), Some(&b"{}"[..])] {
        let request = resolve("a \"naïve\" cat".as_bytes(), None, gen_args, &context()).unwrap();
        assert!(request.seed < 1 << 32);
        let expected = GenerateRequest {
            prompt: "a \"naïve\" cat".into(),
            negative_prompt: String::new(),
            prompt_syntax: PromptSyntax::Plain,
            source: Source::Text,
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
            scheduler: None,
            output: OutputFormat::Png,
        };
        assert_eq!(request, expected);
        assert!(request.do_classifier_free_guidance());
        assert_eq!(request.rows(), 2);
    }
}

#[test]
fn seeds_are_drawn() {
    let seeds: std::collections::HashSet<u64> = (0..8).map(|_| resolve_args("{}").unwrap().seed).collect();
    assert!(seeds.len() > 1, "8 equal seeds of 32 bits");
}

#[test]
fn the_sagemaker_example() {
    let request = resolve(
        b"Infinity pool on top of a high rise overlooking Central Park",
        Some(b"blur, signature, low detail, low quality"),
        Some(br#"{"num_inference_steps": 50, "guidance_scale": 8}"#),
        &context(),
    )
    .unwrap();
    assert_eq!(request.negative_prompt, "blur, signature, low detail, low quality");
    assert_eq!((request.num_inference_steps, request.guidance_scale), (50, 8.0));
}

#[test]
fn a_request_goes_over_the_model_and_the_model_over_the_pipeline() {
    let parameters = with_defaults(
        r#"{"num_inference_steps": 25, "seed": 7, "output_format": "jpeg", "scheduler": "DDIMScheduler"}"#,
    );
    let context = context_of(&parameters).unwrap();
    let request = resolve(b"", None, Some(br#"{"seed": 8, "eta": 1}"#), &context).unwrap();
    assert_eq!(request.num_inference_steps, 25);
    assert_eq!((request.seed, request.eta), (8, 1.0));
    assert_eq!(request.output, OutputFormat::Jpeg { quality: 75 });
    assert_eq!(request.scheduler.as_deref(), Some("DDIMScheduler"));
    let request = resolve(b"", None, Some(br#"{"sigmas": [9, 1]}"#), &context).unwrap();
    assert_eq!(request.num_inference_steps, 2);
}

#[test]
fn sizes() {
    let size = |args: &str| resolve_args(args).map(|r| (r.height, r.width)).unwrap();
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
fn rows_are_limited() {
    assert_eq!(resolve_args(r#"{"num_images_per_prompt": 8}"#).unwrap().rows(), 16);
    assert_eq!(
        message(r#"{"num_images_per_prompt": 9}"#),
        "gen_args: `num_images_per_prompt` 9, doubled by guidance, needs 18 rows of a UNet call, more than max_unet_batch_size 16"
    );
    let request = resolve_args(r#"{"num_images_per_prompt": 16, "guidance_scale": 1.0}"#).unwrap();
    assert!(!request.do_classifier_free_guidance());
    assert_eq!(request.rows(), 16);
    assert_eq!(
        message(r#"{"num_images_per_prompt": 17, "guidance_scale": 0}"#),
        "gen_args: `num_images_per_prompt` 17 needs 17 rows of a UNet call, more than max_unet_batch_size 16"
    );
}

#[test]
fn a_model_that_takes_the_guidance_scale_itself_adds_no_rows() {
    let capabilities = Capabilities {
        guidance_embedding: true,
        ..capabilities(PipelineClass::StableDiffusion)
    };
    // One row at most, and the default guidance scale: the model loads.
    let parameters = ModelParameters {
        max_unet_batch_size: Some(1),
        ..ModelParameters::default()
    };
    let context = RequestContext::new(capabilities, &parameters).unwrap();
    let args = br#"{"guidance_scale": 8}"#;
    let request = resolve(b"", None, Some(args), &context).unwrap();
    assert!(request.guidance_embedding);
    assert!(!request.do_classifier_free_guidance());
    assert_eq!((request.guidance_scale, request.rows()), (8.0, 1));
    let args = br#"{"guidance_scale": 8, "num_images_per_prompt": 2}"#;
    let error = resolve(b"", None, Some(args), &context).unwrap_err();
    assert_eq!(
        error.to_string(),
        "gen_args: `num_images_per_prompt` 2 needs 2 rows of a UNet call, more than max_unet_batch_size 1"
    );
}

#[test]
fn prompts_are_checked_as_the_syntax_says() {
    let bad = b"(QZXJ:11)";
    let weighted = &br#"{"prompt_syntax": "weighted"}"#[..];
    let fails = |prompt: &[u8], negative: &[u8], args: &[u8], context: &RequestContext| {
        let error = resolve(prompt, Some(negative), Some(args), context).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)));
        assert!(!error.to_string().contains("QZXJ"));
        error.to_string()
    };
    let context = context();
    let why = "`prompt_syntax` weighted: a weight, multiplied by those of the brackets around it, must be a number from -10 to 10";
    assert_eq!(fails(bad, b"", weighted, &context), format!("prompt: {why}"));
    assert_eq!(
        fails(b"(a:1.3)", bad, weighted, &context),
        format!("negative_prompt: {why}")
    );
    let deep = [&b"[(".repeat(65)[..], b"QZXJ"].concat();
    assert!(fails(&deep, b"", weighted, &context).starts_with("prompt: `prompt_syntax` weighted:"));
    for plain in [&br#"{"prompt_syntax": "plain"}"#[..], b"{}"] {
        let request = resolve(bad, Some(bad), Some(plain), &context).unwrap();
        assert_eq!(request.prompt_syntax, PromptSyntax::Plain);
    }
    // A model's default holds as for any other key.
    let own = context_of(&with_defaults(r#"{"prompt_syntax": "weighted"}"#)).unwrap();
    assert!(fails(bad, b"", b"", &own).starts_with("prompt: "));
    let request = resolve(b"(a:2)", None, None, &own).unwrap();
    assert_eq!(request.prompt_syntax, PromptSyntax::Weighted);
    assert_eq!(request.gen_args("X")["prompt_syntax"], "weighted");
    assert_eq!(request.prompt, "(a:2)");
    resolve(bad, None, Some(br#"{"prompt_syntax": "plain"}"#), &own).unwrap();
}

#[test]
fn steps() {
    assert_eq!(
        message(r#"{"num_inference_steps": 3, "timesteps": [5, 2]}"#),
        "gen_args: `num_inference_steps` 3 is not the number of `timesteps`, 2; give one of the two"
    );
    let request = resolve_args(r#"{"num_inference_steps": 2, "timesteps": [5, 2]}"#).unwrap();
    assert_eq!(request.timesteps, Some(vec![5, 2]));
    let parameters = ModelParameters {
        max_steps: Some(20),
        ..with_defaults(r#"{"num_inference_steps": 20}"#)
    };
    let context = context_of(&parameters).unwrap();
    let sigmas = format!("{{\"sigmas\": [{}]}}", ["1.5"; 21].join(","));
    for (args, name) in [
        (r#"{"num_inference_steps": 21}"#, "num_inference_steps"),
        (&*sigmas, "sigmas"),
    ] {
        let error = resolve(b"", None, Some(args.as_bytes()), &context).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("gen_args: 21 steps of `{name}` are more than max_steps 20")
        );
    }
}

#[test]
fn clip_skip_is_at_most_the_layers() {
    assert_eq!(resolve_args(r#"{"clip_skip": 12}"#).unwrap().clip_skip, Some(12));
    assert_eq!(
        message(r#"{"clip_skip": 13}"#),
        "gen_args: `clip_skip` must be an integer from 0 to 12, the layers of the text encoder"
    );
}

#[test]
fn schedulers() {
    let request = resolve_args(r#"{"scheduler": "PNDMScheduler"}"#).unwrap();
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
fn formats() {
    for (args, output) in [
        (r#"{"output_format": "png"}"#, OutputFormat::Png),
        (r#"{"output_format": "jpeg"}"#, OutputFormat::Jpeg { quality: 75 }),
        (r#"{"output_format": "webp"}"#, OutputFormat::Webp { quality: 80 }),
        (
            r#"{"output_format": "webp", "quality": 1}"#,
            OutputFormat::Webp { quality: 1 },
        ),
    ] {
        assert_eq!(resolve_args(args).unwrap().output, output);
    }
    assert!(message(r#"{"quality": 90}"#).starts_with("gen_args: `quality` goes with"));
    let wide = |format: &str, width: u32| {
        resolve_args(&format!(
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
fn each_input_is_named() {
    let context = context();
    let long = vec![b'a'; (64 << 10) + 1];
    let bad = &b"caf\xe9"[..];
    let fails = |prompt: &[u8], negative: Option<&[u8]>, args: Option<&[u8]>| {
        let error = resolve(prompt, negative, args, &context).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)));
        error.to_string()
    };
    assert_eq!(fails(bad, None, None), "prompt: not valid UTF-8 at byte 3");
    assert_eq!(
        fails(b"", Some(bad), None),
        "negative_prompt: not valid UTF-8 at byte 3"
    );
    assert_eq!(fails(b"", None, Some(bad)), "gen_args: not valid UTF-8 at byte 3");
    let limit = "65537 bytes are more than the 65536 that are allowed";
    assert_eq!(fails(&long, None, None), format!("prompt: {limit}"));
    assert_eq!(fails(b"", Some(&long), None), format!("negative_prompt: {limit}"));
    assert_eq!(fails(b"", None, Some(&long)), format!("gen_args: {limit}"));
    assert!(resolve(&long[1..], None, None, &context).is_ok());
    assert_eq!(
        message(r#"{"strength": 0.5}"#),
        "gen_args: `strength` is not taken by StableDiffusionPipeline"
    );
}

#[test]
fn a_model_whose_defaults_cannot_be_served_does_not_load() {
    let fails = |parameters: &ModelParameters| match context_of(parameters) {
        Err(Error::InvalidArgument(message)) => message,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        fails(&with_defaults(r#"{"noise_level": 5}"#)),
        "model parameters, default_gen_args: `noise_level` is not taken by StableDiffusionPipeline, \
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
    let error = context_of(&with_defaults(r#"{"guidance_scale": "high"}"#)).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("parameter `default_gen_args`: "), "{text}");
    assert!(text.contains("`guidance_scale`"), "{text}");
    assert!(!text.contains("high"), "{text}");
    assert!(matches!(
        context_of(&with_defaults(r#"{"preview": true}"#)),
        Err(Error::Unsupported(_))
    ));
}

proptest! {
    /// Whatever stands in the three inputs, no error quotes it.
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
            let error = resolve(prompt, Some(negative), Some(args), &context()).unwrap_err();
            prop_assert!(!error.to_string().contains("QZXJ"), "{error}");
        }
    }

    /// What `gen_args()` gives can be sent again, and asks for the same images.
    #[test]
    fn the_arguments_can_be_sent_again(
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
    ) {
        let request = GenerateRequest {
            source: Source::Text,
            prompt: "a".into(),
            negative_prompt: "b".into(),
            prompt_syntax: PromptSyntax::ALL[syntax].1,
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
            output: [OutputFormat::Png, OutputFormat::Jpeg { quality }, OutputFormat::Webp { quality }][format],
        };
        let args = Value::Object(request.gen_args(SCHEDULERS[scheduler])).to_string();
        let again = resolve(b"a", Some(b"b"), Some(args.as_bytes()), &context()).unwrap();
        prop_assert_eq!(again, request);
    }
}
