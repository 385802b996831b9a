//! Requests with images.

use super::*;
use base64::prelude::{BASE64_STANDARD, Engine as _};

/// A PNG of that size in base64, RGB or grey.
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

fn context_for(class: PipelineClass, parameters: &ModelParameters) -> RequestContext {
    let factor = if class == PipelineClass::Upscale { 4 } else { 8 };
    let capabilities = Capabilities {
        vae_scale_factor: factor,
        ..capabilities(class)
    };
    RequestContext::new(capabilities, parameters).unwrap()
}

/// Resolves a row of images for a class with default parameters.
fn resolve_for(class: PipelineClass, row: RowInputs<'_>) -> Result<GenerateRequest> {
    super::super::resolve(&row, &context_for(class, &ModelParameters::default()))
}

fn refusal(class: PipelineClass, row: RowInputs<'_>) -> String {
    match resolve_for(class, row) {
        Err(Error::InvalidArgument(message)) => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_given_decides_what_a_text_to_image_folder_does() {
    let class = PipelineClass::StableDiffusion;
    let (image, mask) = (rgb(45, 31), mask(9, 9));
    let text = resolve_for(class, RowInputs::default()).unwrap();
    assert_eq!(text.source, Source::Text);

    let row = RowInputs {
        image: Some(&image),
        ..RowInputs::default()
    };
    let changed = resolve_for(class, row).unwrap();
    assert_eq!((changed.width, changed.height), (40, 24));
    assert_eq!(changed.source.class(), PipelineClass::Img2Img);
    assert!(matches!(changed.source, Source::Image { strength, .. } if strength == 0.8));

    let row = RowInputs {
        mask_image: Some(&mask),
        ..row
    };
    let repainted = resolve_for(class, row).unwrap();
    assert_eq!((repainted.width, repainted.height), (768, 512));
    assert!(matches!(
        repainted.source,
        Source::Inpaint { strength, keep_unmasked: true, padding_mask_crop: None, .. } if strength == 1.0
    ));

    let alone = RowInputs {
        mask_image: Some(&mask),
        ..RowInputs::default()
    };
    assert!(refusal(class, alone).contains("`mask_image` needs input `image`"));
}

#[test]
fn each_class_takes_its_own_arguments() {
    let (image, mask) = (rgb(64, 64), mask(64, 64));
    let cases = [
        (
            PipelineClass::StableDiffusion,
            None,
            None,
            r#"{"strength": 0.5}"#,
            "`strength` is not taken by StableDiffusionPipeline",
        ),
        (
            PipelineClass::StableDiffusion,
            Some(&image),
            None,
            r#"{"height": 64}"#,
            "`height` is not taken by StableDiffusionImg2ImgPipeline",
        ),
        (
            PipelineClass::Depth2Img,
            Some(&image),
            None,
            r#"{"noise_level": 1}"#,
            "`noise_level` is not taken",
        ),
        (
            PipelineClass::Inpaint,
            Some(&image),
            Some(&mask),
            r#"{"guidance_rescale": 0.5}"#,
            "`guidance_rescale` is not taken",
        ),
        (
            PipelineClass::Upscale,
            Some(&image),
            None,
            r#"{"width": 64}"#,
            "`width` is not taken",
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
            "`strength` 0.1 of 9 steps leaves no step",
        ),
        (
            PipelineClass::Depth2Img,
            Some(&image),
            None,
            r#"{"strength": 0}"#,
            "leaves no step",
        ),
        (
            PipelineClass::Inpaint,
            Some(&image),
            Some(&mask),
            r#"{"strength": 0.01}"#,
            "leaves no step",
        ),
        (
            PipelineClass::Depth2Img,
            None,
            None,
            "{}",
            "input `image` is missing: StableDiffusionDepth2ImgPipeline needs it",
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
        let row = RowInputs {
            image: image.map(Vec::as_slice),
            mask_image: mask_image.map(Vec::as_slice),
            gen_args: Some(gen_args.as_bytes()),
            ..RowInputs::default()
        };
        let message = refusal(class, row);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn sizes_have_limits() {
    let parameters = ModelParameters {
        max_pixels: Some(64 * 64),
        ..ModelParameters::default()
    };
    let with_image = |class, image: &[u8]| {
        let row = RowInputs {
            image: Some(image),
            ..RowInputs::default()
        };
        super::super::resolve(&row, &context_for(class, &parameters))
    };
    assert!(with_image(PipelineClass::Depth2Img, &rgb(71, 64)).is_ok());
    let error = with_image(PipelineClass::Depth2Img, &rgb(72, 64)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "input `image`: 72x64 pixels are more than max_pixels 4096"
    );
    // One that is far beyond is not decoded: the file breaks off behind its header.
    for class in [PipelineClass::Depth2Img, PipelineClass::Img2Img] {
        let error = with_image(class, &rgb(600, 600)[..80]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "input `image`: an image of 600x600 pixels is too large: the limit is 266240 pixels"
        );
    }
    let error = with_image(PipelineClass::Img2Img, &rgb(300, 7)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "input `image` must be at least 8 pixels high and wide; it is 300x7"
    );
    // The upscaler goes on in pieces instead.
    let large = with_image(PipelineClass::Upscale, &rgb(67, 90)).unwrap();
    assert_eq!((large.width, large.height), (256, 352));
    assert!(matches!(
        large.source,
        Source::Upscale {
            noise_level: 20,
            max_piece_pixels: 4096,
            ..
        }
    ));
    let error = with_image(PipelineClass::Upscale, &mask(1025, 1024)).unwrap_err();
    assert!(error.to_string().starts_with("input `image`: "), "{error}");
    assert!(error.to_string().contains("1048576 pixels"), "{error}");
}

#[test]
fn a_crop_needs_a_mask_of_the_images_size() {
    let (image, mask) = (rgb(64, 64), mask(64, 60));
    let row = RowInputs {
        image: Some(&image),
        mask_image: Some(&mask),
        gen_args: Some(br#"{"padding_mask_crop": 8}"#),
        ..RowInputs::default()
    };
    let message = refusal(PipelineClass::Inpaint, row);
    assert!(message.contains("64x64 and 64x60"), "{message}");
}

#[test]
fn a_depth_map_is_taken_where_depth_is() {
    let (image, depth) = (rgb(64, 64), mask(5, 7));
    let row = RowInputs {
        image: Some(&image),
        depth_map: Some(&depth),
        ..RowInputs::default()
    };
    let request = resolve_for(PipelineClass::Depth2Img, row).unwrap();
    assert!(matches!(request.source, Source::Depth { depth_map: Some(_), .. }));
    let colourful = RowInputs {
        depth_map: Some(&image),
        ..row
    };
    let message = refusal(PipelineClass::Depth2Img, colourful);
    assert!(message.starts_with("input `depth_map`: "), "{message}");
}

#[test]
fn default_arguments_go_to_the_pipelines_that_take_them() {
    let parameters = with_defaults(r#"{"strength": 0.4, "num_inference_steps": 10}"#);
    let context = context_for(PipelineClass::StableDiffusion, &parameters);
    let image = rgb(64, 64);
    let text = super::super::resolve(&RowInputs::default(), &context).unwrap();
    assert_eq!(text.num_inference_steps, 10);
    let row = RowInputs {
        image: Some(&image),
        ..RowInputs::default()
    };
    let changed = super::super::resolve(&row, &context).unwrap();
    assert!(matches!(changed.source, Source::Image { strength, .. } if strength == 0.4));
    // A key that none of them takes, and one that leaves nothing to do, fail the load.
    for (gen_args, expected) in [
        (
            r#"{"noise_level": 3}"#,
            "`noise_level` is not taken by StableDiffusionPipeline, ",
        ),
        (r#"{"strength": 0.01}"#, "leaves no step"),
    ] {
        let error =
            RequestContext::new(capabilities(PipelineClass::StableDiffusion), &with_defaults(gen_args)).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// What goes into an image's metadata asks for the same image again.
#[test]
fn arguments_come_back_the_same() {
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
        let row = |gen_args| RowInputs {
            image: Some(&image),
            mask_image: (class == PipelineClass::Inpaint).then_some(&mask[..]),
            gen_args: Some(gen_args),
            ..RowInputs::default()
        };
        let first = resolve_for(class, row(gen_args.as_bytes())).unwrap();
        let again = Value::Object(first.gen_args("PNDMScheduler")).to_string();
        let second = resolve_for(class, row(again.as_bytes())).unwrap();
        let expected = GenerateRequest {
            scheduler: Some("PNDMScheduler".into()),
            ..first
        };
        assert_eq!(second, expected, "{class}");
    }
}
