//! Requests with images.

use super::*;
use crate::{Img2Img, Inpaint, Upscale};
use base64::prelude::{BASE64_STANDARD, Engine as _};

/// A PNG of that size in base64, RGB or gray.
fn file(width: u32, height: u32, color: png::ColorType) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(color);
    let bytes = (width * height) as usize * color.samples();
    let mut writer = encoder.write_header().unwrap();
    let samples: Vec<u8> = (0..bytes).map(|index| (index * 7 % 251) as u8).collect();
    writer.write_image_data(&samples).unwrap();
    writer.finish().unwrap();
    BASE64_STANDARD.encode(file).into_bytes()
}

fn rgb(width: u32, height: u32) -> Vec<u8> {
    file(width, height, png::ColorType::Rgb)
}

fn mask(width: u32, height: u32) -> Vec<u8> {
    file(width, height, png::ColorType::Grayscale)
}

fn validator_for(class: PipelineClass, parameters: &ModelParameters) -> RequestValidator {
    let factor = if class == PipelineClass::Upscale { 4 } else { 8 };
    let model = ModelInfo {
        vae_scale_factor: factor,
        ..model_info(class)
    };
    RequestValidator::new(model, parameters).unwrap()
}

/// Validates an element with images for a class with default parameters.
fn validate_for(class: PipelineClass, element: ElementInputs<'_>) -> Result<GenerateRequest> {
    validator_for(class, &ModelParameters::default()).validate(&element)
}

fn refusal(class: PipelineClass, element: ElementInputs<'_>) -> String {
    match validate_for(class, element) {
        Err(Error::InvalidArgument(message)) => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn inputs_select_the_pipeline_of_a_text_to_image_folder() {
    let class = PipelineClass::StableDiffusion;
    let (image, mask) = (rgb(45, 31), mask(9, 9));
    let text = validate_for(class, ElementInputs::default()).unwrap();
    assert!(matches!(text.inputs, PipelineInputs::Text2Img(Text2Img)));

    let element = ElementInputs {
        image: Some(&image),
        ..ElementInputs::default()
    };
    let changed = validate_for(class, element).unwrap();
    assert_eq!((changed.width, changed.height), (40, 24));
    assert!(matches!(changed.inputs, PipelineInputs::Img2Img(Img2Img { strength, .. }) if strength == 0.8));

    let element = ElementInputs {
        mask_image: Some(&mask),
        ..element
    };
    let repainted = validate_for(class, element).unwrap();
    assert_eq!((repainted.width, repainted.height), (768, 512));
    assert!(matches!(
        repainted.inputs,
        PipelineInputs::Inpaint(Inpaint { strength, keep_unmasked: true, padding_mask_crop: None, .. }) if strength == 1.0
    ));

    let alone = ElementInputs {
        mask_image: Some(&mask),
        ..ElementInputs::default()
    };
    assert!(refusal(class, alone).contains("`mask_image` requires input `image`"));
}

#[test]
fn arguments_of_other_pipelines_are_refused() {
    let (image, mask) = (rgb(64, 64), mask(64, 64));
    let cases = [
        (
            PipelineClass::StableDiffusion,
            None,
            None,
            r#"{"strength": 0.5}"#,
            "`strength` is not supported by StableDiffusionPipeline",
        ),
        (
            PipelineClass::StableDiffusion,
            Some(&image),
            None,
            r#"{"height": 64}"#,
            "`height` is not supported by StableDiffusionImg2ImgPipeline",
        ),
        (
            PipelineClass::Depth2Img,
            Some(&image),
            None,
            r#"{"noise_level": 1}"#,
            "`noise_level` is not supported",
        ),
        (
            PipelineClass::Inpaint,
            Some(&image),
            Some(&mask),
            r#"{"guidance_rescale": 0.5}"#,
            "`guidance_rescale` is not supported",
        ),
        (
            PipelineClass::Upscale,
            Some(&image),
            None,
            r#"{"width": 64}"#,
            "`width` is not supported",
        ),
        (
            PipelineClass::Upscale,
            Some(&image),
            None,
            r#"{"noise_level": 351}"#,
            "`noise_level` must be an integer from 0 to 350",
        ),
        (
            PipelineClass::Img2Img,
            Some(&image),
            None,
            r#"{"strength": 0.1, "num_inference_steps": 9}"#,
            "`strength` 0.1 with 9 steps results in no denoising step",
        ),
        (
            PipelineClass::Depth2Img,
            Some(&image),
            None,
            r#"{"strength": 0}"#,
            "results in no denoising step",
        ),
        (
            PipelineClass::Inpaint,
            Some(&image),
            Some(&mask),
            r#"{"strength": 0.01}"#,
            "results in no denoising step",
        ),
        (
            PipelineClass::Depth2Img,
            None,
            None,
            "{}",
            "input `image` is missing; StableDiffusionDepth2ImgPipeline requires it",
        ),
        (
            PipelineClass::Inpaint,
            Some(&image),
            None,
            "{}",
            "input `mask_image` is missing",
        ),
    ];
    for (class, image, mask_image, gen_args, expected) in cases {
        let element = ElementInputs {
            image: image.map(Vec::as_slice),
            mask_image: mask_image.map(Vec::as_slice),
            gen_args: Some(gen_args.as_bytes()),
            ..ElementInputs::default()
        };
        let message = refusal(class, element);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn image_size_beyond_the_limits_is_refused() {
    let parameters = ModelParameters {
        max_pixels: Some(64 * 64),
        ..ModelParameters::default()
    };
    let with_image = |class, image: &[u8]| {
        let element = ElementInputs {
            image: Some(image),
            ..ElementInputs::default()
        };
        validator_for(class, &parameters).validate(&element)
    };
    assert!(with_image(PipelineClass::Depth2Img, &rgb(71, 64)).is_ok());
    let error = with_image(PipelineClass::Depth2Img, &rgb(72, 64)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "input `image`: 72x64 pixels are more than max_pixels 4096"
    );
    // The file ends after its header: pixels are not decoded here.
    for class in [PipelineClass::Depth2Img, PipelineClass::Img2Img] {
        let error = with_image(class, &rgb(600, 600)[..80]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "input `image`: 600x600 pixels are more than max_pixels 4096"
        );
    }
    let error = with_image(PipelineClass::Img2Img, &rgb(300, 7)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "input `image` must be at least 8 pixels high and wide, got 300x7"
    );
    // The upscaler generates a large image in tiles.
    let large = with_image(PipelineClass::Upscale, &rgb(67, 90)).unwrap();
    assert_eq!((large.width, large.height), (256, 352));
    assert!(matches!(
        large.inputs,
        PipelineInputs::Upscale(Upscale { noise_level: 20, .. })
    ));
    let error = with_image(PipelineClass::Upscale, &mask(1025, 1024)).unwrap_err();
    assert!(error.to_string().starts_with("input `image`: "), "{error}");
    assert!(error.to_string().contains("1048576 pixels"), "{error}");
}

#[test]
fn crop_with_a_mask_of_another_size_is_refused() {
    let (image, mask) = (rgb(64, 64), mask(64, 60));
    let element = ElementInputs {
        image: Some(&image),
        mask_image: Some(&mask),
        gen_args: Some(br#"{"padding_mask_crop": 8}"#),
        ..ElementInputs::default()
    };
    let message = refusal(PipelineClass::Inpaint, element);
    assert!(message.contains("64x64 and 64x60"), "{message}");
}

#[test]
fn depth_map_is_read_and_named() {
    let (image, depth) = (rgb(64, 64), mask(5, 7));
    let element = ElementInputs {
        image: Some(&image),
        depth_map: Some(&depth),
        ..ElementInputs::default()
    };
    let request = validate_for(PipelineClass::Depth2Img, element).unwrap();
    let PipelineInputs::Depth2Img(inputs) = &request.inputs else {
        panic!("{:?}", request.inputs);
    };
    assert!(inputs.depth_map.as_ref().unwrap().depth_map().is_ok());
    let broken = ElementInputs {
        depth_map: Some(&image[..30]),
        ..element
    };
    let message = refusal(PipelineClass::Depth2Img, broken);
    assert!(message.starts_with("input `depth_map`: "), "{message}");
}

#[test]
fn default_arguments_apply_to_pipelines_that_support_them() {
    let parameters = with_defaults(r#"{"strength": 0.4, "num_inference_steps": 10}"#);
    let validator = validator_for(PipelineClass::StableDiffusion, &parameters);
    let image = rgb(64, 64);
    let text = validator.validate(&ElementInputs::default()).unwrap();
    assert_eq!(text.num_inference_steps, 10);
    let element = ElementInputs {
        image: Some(&image),
        ..ElementInputs::default()
    };
    let changed = validator.validate(&element).unwrap();
    assert!(matches!(changed.inputs, PipelineInputs::Img2Img(Img2Img { strength, .. }) if strength == 0.4));
    // A key that no pipeline supports fails the load, and so does a strength that results in no step.
    for (gen_args, expected) in [
        (
            r#"{"noise_level": 3}"#,
            "`noise_level` is not supported by StableDiffusionPipeline, ",
        ),
        (r#"{"strength": 0.01}"#, "results in no denoising step"),
    ] {
        let error =
            RequestValidator::new(model_info(PipelineClass::StableDiffusion), &with_defaults(gen_args)).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// The arguments in an image's metadata give the same request again.
#[test]
fn gen_args_of_images_sent_again_give_the_same_request() {
    let (image, mask) = (rgb(64, 48), mask(64, 48));
    let cases = [
        (PipelineClass::Img2Img, r#"{"strength": 0.35, "seed": 4}"#),
        (PipelineClass::Depth2Img, r#"{"strength": 1, "seed": 4, "eta": 0.5}"#),
        (
            PipelineClass::Inpaint,
            r#"{"strength": 0.9, "seed": 4, "padding_mask_crop": 3, "keep_unmasked": false, "height": 72, "width": 80}"#,
        ),
        (PipelineClass::Upscale, r#"{"noise_level": 7, "seed": 4}"#),
    ];
    for (class, gen_args) in cases {
        let element = |gen_args| ElementInputs {
            image: Some(&image),
            mask_image: (class == PipelineClass::Inpaint).then_some(&mask[..]),
            gen_args: Some(gen_args),
            ..ElementInputs::default()
        };
        let first = validate_for(class, element(gen_args.as_bytes())).unwrap();
        let again = Value::Object(first.gen_args()).to_string();
        let second = validate_for(class, element(again.as_bytes())).unwrap();
        assert_eq!(second, first, "{class}");
    }
}
