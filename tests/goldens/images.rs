//! Images of whole pipelines, from prompt to pixels.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use diffusion_core::config::{ModelParameters, Numerics};
use diffusion_engine::Pipeline;
use diffusion_request::{ElementInputs, GenerateRequest, RequestValidator};
use serde::Deserialize;
use serde_json::{Map, Value};
use triton_diffusion::pipelines::{Components, Device, DiffusionPipeline, Job, PipelineOutput};

use crate::support::{Cases, Goldens, checkpoint, compare_bytes, exact, psnr};

#[derive(Deserialize)]
pub struct Element {
    pub prompt: String,
    negative_prompt: Option<String>,
    gen_args: Map<String, Value>,
    image: Option<String>,
    mask_image: Option<String>,
    depth_map: Option<String>,
    nsfw_content_detected: Option<Vec<bool>>,
}

#[derive(Deserialize)]
pub struct ImageCase {
    pub name: String,
    pub checkpoint: String,
    pub elements: Vec<Element>,
}

/// Encodes the input image `name`, `[height, width]` or `[height, width, 3]`, as a client sends it.
fn input(goldens: &Goldens, name: &str) -> Vec<u8> {
    let pixels = goldens.tensor(&format!("inputs/{name}"));
    let size = pixels.size();
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, size[1] as u32, size[0] as u32);
    encoder.set_color(if size.len() == 2 {
        png::ColorType::Grayscale
    } else {
        png::ColorType::Rgb
    });
    let bytes: Vec<u8> = pixels.reshape([-1]).try_into().unwrap();
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&bytes).unwrap();
    writer.finish().unwrap();
    BASE64_STANDARD.encode(file).into_bytes()
}

/// Generates the images of several requests that run together.
fn generate(
    goldens: &Goldens,
    pipeline: &mut DiffusionPipeline,
    validator: &RequestValidator,
    elements: &[Element],
) -> Vec<PipelineOutput> {
    let prepare = |element| pipeline.prepare(validated(goldens, validator, element).into()).unwrap();
    let jobs = elements.iter().map(prepare).collect();
    finish_all(pipeline, jobs).0
}

/// Validates the request of a batch element.
pub fn validated(goldens: &Goldens, validator: &RequestValidator, element: &Element) -> GenerateRequest {
    let gen_args = Value::Object(element.gen_args.clone()).to_string();
    let read = |name: &Option<String>| name.as_deref().map(|name| input(goldens, name));
    let (image, mask_image) = (read(&element.image), read(&element.mask_image));
    let depth_map = read(&element.depth_map);
    let inputs = ElementInputs {
        prompt: element.prompt.as_bytes(),
        negative_prompt: element.negative_prompt.as_deref().map(str::as_bytes),
        image: image.as_deref(),
        mask_image: mask_image.as_deref(),
        depth_map: depth_map.as_deref(),
        gen_args: Some(gen_args.as_bytes()),
    };
    validator.validate(&inputs).unwrap()
}

/// Computes jobs that run together. Also returns the number of calls for all their steps.
pub fn finish_all(pipeline: &mut DiffusionPipeline, mut jobs: Vec<Job>) -> (Vec<PipelineOutput>, usize) {
    let mut calls = 0;
    loop {
        let mut going: Vec<_> = jobs.iter_mut().filter(|job| !pipeline.is_done(job)).collect();
        if going.is_empty() {
            break;
        }
        // Jobs of equal shape share the call, as in the engine.
        let shape = pipeline.batch_entries(going[0]).shape;
        going.retain(|job| pipeline.batch_entries(job).shape == shape);
        calls += 1;
        for outcome in pipeline.step(&mut going).unwrap() {
            outcome.unwrap();
        }
    }
    let outputs = jobs.into_iter().map(|job| pipeline.finish(job).unwrap());
    (outputs.collect(), calls)
}

/// Validates a request of text and `gen_args`.
pub fn prepare(validator: &RequestValidator, gen_args: &Value) -> GenerateRequest {
    let gen_args = gen_args.to_string();
    let inputs = ElementInputs {
        prompt: b"a photo of a cat sitting on a red chair",
        gen_args: Some(gen_args.as_bytes()),
        ..ElementInputs::default()
    };
    validator.validate(&inputs).unwrap()
}

pub fn pipeline(name: &str, parameters: &ModelParameters) -> (DiffusionPipeline, RequestValidator) {
    let (components, _) = Components::load(&checkpoint(name), parameters, Device::Cpu).unwrap();
    let validator = RequestValidator::new(components.model_info(), parameters).unwrap();
    let pipeline = DiffusionPipeline::new(components, validator.limits().max_pixels);
    (pipeline, validator)
}

/// Compares every image of a group.
pub fn compare(group: &'static str) {
    let mut goldens = Goldens::open(group);
    let cases: Cases<ImageCase> = goldens.manifest();
    let _no_grad = tch::no_grad_guard();
    let mut equal_to_the_byte = 0;
    for case in cases.cases {
        let (mut pipeline, validator) = pipeline(&case.checkpoint, &exact());
        let elements = generate(&goldens, &mut pipeline, &validator, &case.elements);
        for (index, generated) in elements.iter().enumerate() {
            let name = format!("{}/{index}", case.name);
            let flags = &generated.nsfw_content_detected;
            assert_eq!(flags, &case.elements[index].nsfw_content_detected, "{name}: flags");
            let images = &generated.images;
            let theirs = goldens.tensor(&name);
            let size = theirs.size();
            assert_eq!(size[0] as usize, images.len(), "{name}: number of images");
            for (image, theirs) in images.iter().zip(theirs.split(1, 0)) {
                let (height, width) = (i64::from(image.height()), i64::from(image.width()));
                assert_eq!([height, width], [size[1], size[2]], "{name}: size");
                let theirs: Vec<u8> = theirs.reshape([-1]).try_into().unwrap();
                goldens.compared += 1;
                match compare_bytes(image.rgb(), &theirs) {
                    Ok(equal) => equal_to_the_byte += usize::from(equal),
                    Err(difference) => goldens.failures.push(format!("{name}: {difference}")),
                }
            }
        }
    }
    println!("{group}: {equal_to_the_byte} of {} equal to the byte", goldens.compared);
    goldens.report();
}

#[test]
fn text2img_images_match() {
    compare("images");
}

#[test]
fn img2img_images_match() {
    compare("image_to_image");
}

#[test]
fn depth2img_images_match() {
    compare("depth_to_image");
}

#[test]
fn inpaint_images_match() {
    compare("inpaint");
}

#[test]
fn upscale_images_match() {
    compare("upscale");
}

/// The images of the cases of a group with fast numerics: above 50 dB of the exact ones, and the same bytes in any company.
pub fn compare_fast(group: &'static str) {
    let goldens = Goldens::open(group);
    let cases: Cases<ImageCase> = goldens.manifest();
    let _no_grad = tch::no_grad_guard();
    let fast = ModelParameters {
        numerics: Numerics::Fast,
        ..ModelParameters::default()
    };
    let mut worst = f64::INFINITY;
    for case in cases.cases {
        let (mut fast, validator) = pipeline(&case.checkpoint, &fast);
        let (mut exact, _) = pipeline(&case.checkpoint, &exact());
        let together = generate(&goldens, &mut fast, &validator, &case.elements);
        let expected = generate(&goldens, &mut exact, &validator, &case.elements);
        for (index, element) in case.elements.iter().enumerate() {
            let name = format!("{}/{index}", case.name);
            let alone = match case.elements.len() {
                1 => continue,
                _ => generate(&goldens, &mut fast, &validator, std::slice::from_ref(element)),
            };
            for (number, image) in together[index].images.iter().enumerate() {
                assert!(
                    image.rgb() == alone[0].images[number].rgb(),
                    "{name}: company changes the image"
                );
                worst = worst.min(psnr(image.rgb(), expected[index].images[number].rgb()));
            }
            assert!(worst > 50.0, "{name}: {worst} dB");
        }
    }
    println!("{group}: above {worst:.1} dB");
}

#[test]
fn fast_text2img_images_are_close_and_the_same_in_company() {
    compare_fast("images");
}

#[test]
fn fast_depth2img_images_are_close_and_the_same_in_company() {
    compare_fast("depth_to_image");
}

#[test]
fn fast_inpaint_images_are_close_and_the_same_in_company() {
    compare_fast("inpaint");
}

#[test]
fn fast_upscale_images_are_close_and_the_same_in_company() {
    compare_fast("upscale");
}
