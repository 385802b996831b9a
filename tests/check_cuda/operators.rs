//! Every operator that a GPU must compute has a kernel for CUDA in libtorch.
//!
//! One process runs all pipelines and schedulers on the pretend GPU (`tests/gpu/pretend`) and collects the operators
//! from its log. Another process looks them up in the dispatcher with libtorch's real CUDA library.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, c_char};
use std::io::Cursor;
use std::path::PathBuf;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use diffusion_core::config::{ModelParameters, Numerics};
use diffusion_engine::Pipeline;
use diffusion_request::{ElementInputs, RequestValidator};
use image::{DynamicImage, ImageFormat, RgbImage};
use serde_json::{Value, json};
use triton_diffusion::pipelines::{Components, Device, DiffusionPipeline};
use triton_diffusion::schedulers;
use triton_diffusion::torch::cuda;

use crate::{Helper, open_cuda, open_library, repository, role, run_in_own_process, symbol, text};

/// The environment variable with the file of the operators.
const FILE: &str = "TRITON_DIFFUSION_CHECK_CUDA_OPERATORS";

/// What the pretend GPU has kernels for that do not log.
const NOT_LOGGED: [&str; 10] = [
    "aten::_local_scalar_dense",
    "aten::_reshape_alias",
    "aten::as_strided",
    "aten::copy_",
    "aten::empty.memory_format",
    "aten::empty_strided",
    "aten::record_stream",
    "aten::resize_",
    "aten::unfold",
    "aten::view",
];

/// The inputs of a request that are no texts.
#[derive(Clone, Copy)]
enum Images {
    None,
    Image,
    ImageAndMask,
    ImageAndDepthMap,
}

/// Returns the requests for each checkpoint: images and `gen_args`.
fn requests() -> BTreeMap<&'static str, Vec<(Images, Value)>> {
    use Images::{Image, ImageAndDepthMap, ImageAndMask, None};
    let text = |args: Value| (None, args);
    let mut base: Vec<_> = schedulers::names()
        .iter()
        .flat_map(|name| [1.0, 3.0].map(|scale| text(json!({"scheduler": name, "guidance_scale": scale}))))
        .collect();
    base.extend([
        text(json!({"scheduler": "DDIMScheduler", "eta": 0.5})),
        text(json!({"scheduler": "TCDScheduler", "eta": 0.5})),
        text(json!({"guidance_rescale": 0.5, "num_images_per_prompt": 2, "clip_skip": 1})),
        text(json!({"prompt_syntax": "weighted"})),
        text(json!({"progress_every": 1, "preview": "linear"})),
        text(json!({"progress_every": 1, "preview": "vae"})),
        (Image, json!({"strength": 0.7, "num_images_per_prompt": 2})),
        (ImageAndMask, json!({"strength": 0.7})),
        (ImageAndMask, json!({"keep_unmasked": false, "padding_mask_crop": 2})),
    ]);
    let depth = vec![
        (Image, json!({"strength": 0.7})),
        (ImageAndDepthMap, json!({"strength": 0.7, "num_images_per_prompt": 2})),
    ];
    let inpaint = vec![
        (ImageAndMask, json!({})),
        (
            ImageAndMask,
            json!({"keep_unmasked": false, "num_images_per_prompt": 2}),
        ),
    ];
    BTreeMap::from([
        ("sd2_base", base),
        ("sd1", vec![text(json!({}))]),
        ("sd1_safety", vec![text(json!({"num_images_per_prompt": 2}))]),
        (
            "sd2_768v",
            vec![text(json!({})), text(json!({"guidance_rescale": 0.5}))],
        ),
        ("lcm", vec![text(json!({}))]),
        ("sd_turbo", vec![text(json!({"guidance_scale": 0.0}))]),
        ("sd2_depth", depth),
        ("sd2_inpaint", inpaint),
        (
            "x4_upscaler",
            vec![(Image, json!({})), (Image, json!({"guidance_scale": 1.0}))],
        ),
    ])
}

/// Makes an image file in base64: RGB, or a mask of two halves.
fn file(mask: bool) -> Vec<u8> {
    let image = RgbImage::from_fn(64, 64, |x, y| match mask {
        true => image::Rgb([if x < 32 { 0 } else { 255 }; 3]),
        false => image::Rgb([4 * x as u8, 4 * y as u8, 128]),
    });
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::from(image)
        .write_to(&mut bytes, ImageFormat::Png)
        .unwrap();
    BASE64_STANDARD.encode(bytes.into_inner()).into_bytes()
}

/// Generates the images of all requests in one batch on GPU 0, where jobs of equal shapes share the UNet calls.
fn generate(checkpoint: &str, parameters: &ModelParameters, requests: &[(Images, Value)]) {
    let folder = test_support::checkpoint(checkpoint);
    let (components, _) = Components::load(&folder, parameters, Device::Cuda(0)).unwrap();
    let validator = RequestValidator::new(components.model_info(), parameters).unwrap();
    let mut pipeline = DiffusionPipeline::new(components, validator.limits().max_pixels);
    pipeline.init_thread().unwrap();
    let (image, mask) = (file(false), file(true));
    let mut jobs = Vec::new();
    for (images, args) in requests {
        let mut args = args.clone();
        args["seed"] = 1.into();
        args["num_inference_steps"] = 4.into();
        let args = args.to_string();
        let given = |given: bool, file| -> Option<&[u8]> { given.then_some(file) };
        let inputs = ElementInputs {
            prompt: b"a (red) cat",
            negative_prompt: None,
            image: given(!matches!(images, Images::None), &image),
            mask_image: given(matches!(images, Images::ImageAndMask), &mask),
            depth_map: given(matches!(images, Images::ImageAndDepthMap), &mask),
            gen_args: Some(args.as_bytes()),
        };
        jobs.push(pipeline.prepare(validator.validate(&inputs).unwrap().into()).unwrap());
    }
    loop {
        let mut going: Vec<_> = jobs.iter_mut().filter(|job| !pipeline.is_done(job)).collect();
        let Some(first) = going.first() else { break };
        let shape = pipeline.batch_entries(first).shape;
        going.retain(|job| pipeline.batch_entries(job).shape == shape);
        for outcome in pipeline.step(&mut going).unwrap() {
            outcome.unwrap();
        }
        for job in going {
            if let Some(preview) = pipeline.preview(job).unwrap() {
                preview.wait().unwrap();
            }
        }
    }
    for job in jobs {
        pipeline.finish(job).unwrap();
    }
}

/// Runs everything on the pretend GPU and returns the operators of its log.
fn operators_of_the_pretend_device() -> BTreeSet<String> {
    cuda::device(0).unwrap();
    let library = PathBuf::from(std::env::var_os(cuda::LIBRARY_PATH_VARIABLE).unwrap()).join("libtorch_cuda.so");
    let library = open_library(&library, libc::RTLD_NOW | libc::RTLD_NOLOAD).unwrap();
    let function = |name: &CStr| symbol(library, name);
    // SAFETY: the types of the functions in tests/gpu/pretend/control.h.
    let (log, take) = unsafe {
        (
            std::mem::transmute::<*mut _, unsafe extern "C" fn(bool)>(function(c"pretend_log")),
            std::mem::transmute::<*mut _, unsafe extern "C" fn() -> *const c_char>(function(c"pretend_take_log")),
        )
    };
    // SAFETY: passes a flag.
    unsafe { log(true) };
    let mut operators: BTreeSet<String> = NOT_LOGGED.map(str::to_owned).into();
    let mut run = |checkpoint: &str, parameters: &ModelParameters, requests: &[(Images, Value)]| {
        generate(checkpoint, parameters, requests);
        // SAFETY: no arguments; the log is copied before the next call.
        let lines = text(unsafe { take() });
        let named = lines
            .lines()
            .filter_map(|line| line.strip_prefix("op ")?.split(' ').next());
        operators.extend(named.map(str::to_owned));
    };
    let parameters = ModelParameters::default();
    let requests = requests();
    for (checkpoint, requests) in &requests {
        run(checkpoint, &parameters, requests);
    }
    let fast = ModelParameters {
        numerics: Numerics::Fast,
        ..ModelParameters::default()
    };
    run("sd2_base", &fast, &requests["sd2_base"]);
    // The image has 256x256 pixels: tiles for the UNet, chunks for the VAE.
    let small = ModelParameters {
        max_pixels: Some(64 * 64),
        ..ModelParameters::default()
    };
    run("x4_upscaler", &small, &requests["x4_upscaler"]);
    operators
}

/// Looks the operators up in the dispatcher.
fn look_up(operators: &str) {
    open_cuda();
    let helper = Helper::open();
    let mut answers: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for operator in operators.lines() {
        answers.entry(helper.kernel(operator)).or_default().push(operator);
    }
    println!("{answers:#?}");
    assert!(answers.keys().all(|answer| answer == "kernel" || answer == "composite"));
    assert!(answers["kernel"].contains(&"aten::convolution") || answers["composite"].contains(&"aten::convolution"));
    assert!(operators.lines().count() > 40);
}

#[test]
#[ignore = "needs libtorch's CUDA libraries: make check-cuda"]
fn operators_of_all_pipelines_have_kernels() {
    let file = std::env::var_os(FILE).map(PathBuf::from);
    match (role().as_deref(), file) {
        (Some("pretend"), Some(file)) => {
            let operators = operators_of_the_pretend_device();
            let lines: Vec<_> = operators.into_iter().collect();
            std::fs::write(file, lines.join("\n")).unwrap();
        }
        (Some(_), Some(file)) => look_up(&std::fs::read_to_string(file).unwrap()),
        _ => {
            let folder = test_support::temporary_folder();
            let file = folder.path().join("operators");
            let name = "operators::operators_of_all_pipelines_have_kernels";
            run_in_own_process(name, "pretend", |command| {
                command
                    .env(cuda::LIBRARY_PATH_VARIABLE, repository("target/pretend"))
                    // For tensors this small, other threads only wait for each other.
                    .env("OMP_NUM_THREADS", "1")
                    .env(FILE, &file);
            });
            run_in_own_process(name, "real", |command| {
                command.env(FILE, &file);
            });
        }
    }
}
