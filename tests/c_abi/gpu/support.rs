//! Instances and requests on the pretend GPU.

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};
use test_support::psnr;
use triton_api::InstanceKind;
use triton_fake::{FakeInstance, FakeRequest, FakeServer, InstanceSpec, ModelSpec};

use crate::support::*;

/// An instance on a GPU.
pub fn on_gpu(index: i32) -> InstanceSpec {
    InstanceSpec {
        name: format!("gpu_{index}"),
        kind: InstanceKind::Gpu,
        device_id: index,
    }
}

/// Loads a tiny checkpoint onto `device`, runs `test` on it, and checks the accounts.
pub fn serve_on(
    device: InstanceSpec,
    checkpoint: &str,
    change: impl FnOnce(ModelSpec) -> ModelSpec,
    test: impl FnOnce(&FakeServer, &FakeInstance<'_>),
) {
    let repository = Repository::new();
    let server = server();
    let backend = server.load_backend().unwrap();
    let spec = change(repository.link("sd_base", checkpoint));
    let model = backend.load_model(spec).unwrap();
    let instance = model.load_instance(device).unwrap();
    test(&server, &instance);
    drop(instance);
    drop(model);
    drop(backend);
    server.assert_clean();
}

/// Base64 of a PNG of this size: a gradient with a frame.
pub fn photo(width: u32, height: u32) -> String {
    let image = image::RgbImage::from_fn(width, height, |x, y| {
        let shade = |at: u32, of: u32| (at * 255 / of) as u8;
        image::Rgb([shade(x, width), shade(y, height), if x < 8 { 255 } else { 40 }])
    });
    png(image.into())
}

/// Base64 of a PNG of this size whose right half is white.
pub fn mask(width: u32, height: u32) -> String {
    let mask = image::GrayImage::from_fn(width, height, |x, _| image::Luma([if x * 2 < width { 0 } else { 255 }]));
    png(mask.into())
}

fn png(image: image::DynamicImage) -> String {
    let mut file = std::io::Cursor::new(Vec::new());
    image.write_to(&mut file, image::ImageFormat::Png).unwrap();
    BASE64_STANDARD.encode(file.into_inner())
}

/// A request of a pipeline: its name, its checkpoint, and its inputs other than the prompt.
pub struct Case {
    pub name: &'static str,
    pub checkpoint: &'static str,
    pub gen_args: Value,
    pub inputs: Vec<(&'static str, String)>,
}

/// A request for each pipeline and each kind of model.
pub fn pipelines() -> Vec<Case> {
    let case = |name, checkpoint, mut gen_args: Value, inputs| {
        gen_args["seed"] = 5.into();
        gen_args["num_inference_steps"] = gen_args.get("num_inference_steps").cloned().unwrap_or(3.into());
        Case {
            name,
            checkpoint,
            gen_args,
            inputs,
        }
    };
    let image = || ("image", photo(64, 64));
    vec![
        case("text to image", "sd2_base", json!({}), vec![]),
        case("text to image, SD 1", "sd1", json!({}), vec![]),
        case("v-prediction", "sd2_768v", json!({}), vec![]),
        case(
            "turbo",
            "sd_turbo",
            json!({"num_inference_steps": 1, "guidance_scale": 0.0}),
            vec![],
        ),
        case("LCM", "lcm", json!({}), vec![]),
        case("four images", "sd2_base", json!({"num_images_per_prompt": 4}), vec![]),
        case(
            "five images without guidance",
            "sd2_base",
            json!({"num_images_per_prompt": 5, "guidance_scale": 1.0}),
            vec![],
        ),
        case("guidance_rescale", "sd2_base", json!({"guidance_rescale": 0.7}), vec![]),
        case(
            "weighted prompt",
            "sd2_base",
            json!({"prompt_syntax": "weighted"}),
            vec![],
        ),
        case("safety checker", "sd1_safety", json!({}), vec![]),
        case("image to image", "sd2_base", json!({"strength": 0.7}), vec![image()]),
        case("depth, estimated", "sd2_depth", json!({}), vec![image()]),
        case(
            "inpaint, 9 channels",
            "sd2_inpaint",
            json!({"strength": 1.0}),
            vec![image(), ("mask_image", mask(64, 64))],
        ),
        case(
            "inpaint, 4 channels",
            "sd2_base",
            json!({"strength": 0.8}),
            vec![image(), ("mask_image", mask(64, 64))],
        ),
        case("upscale", "x4_upscaler", json!({}), vec![("image", photo(24, 16))]),
        case(
            "XL",
            "sdxl_base",
            json!({"prompt_2": "a dog", "target_size": [96, 64]}),
            vec![],
        ),
        case(
            "XL, image to image",
            "sdxl_base",
            json!({"strength": 0.7}),
            vec![image()],
        ),
        case(
            "XL, inpaint",
            "sdxl_inpaint",
            json!({"strength": 1.0}),
            vec![image(), ("mask_image", mask(64, 64))],
        ),
    ]
}

/// Builds the request of a case.
pub fn request(server: &FakeServer, gen_args: &Value, inputs: &[(&'static str, String)]) -> FakeRequest {
    let mut builder = server
        .request()
        .bytes_input("prompt", &[1, 1], &["a (red:1.3) cat"])
        .bytes_input("gen_args", &[1, 1], &[gen_args.to_string()]);
    for (name, value) in inputs {
        builder = builder.bytes_input(name, &[1, 1], &[value]);
    }
    builder.output(OUTPUT).build()
}

/// The pixels of the images of a request that succeeds.
pub fn serve_pixels(server: &FakeServer, instance: &FakeInstance<'_>, case: &Case) -> Vec<u8> {
    let request = request(server, &case.gen_args, &case.inputs);
    instance.execute(&[&request]).unwrap();
    images(&request).iter().flat_map(|file| pixels(file)).collect()
}

/// Asserts that two images differ by no more than rounding in float16.
pub fn assert_near(name: &str, ours: &[u8], theirs: &[u8]) {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let difference = psnr(ours, theirs);
    println!("{name}: {difference:.1} dB");
    assert!(difference > 40.0, "{name}: {difference:.1} dB");
}
