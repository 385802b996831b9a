//! The memory that requests are estimated to need, next to what they take.
//!
//! The checkpoint has the shapes of `sd2_base`, with four times the channels and the latent channels: its activations are
//! large enough to be seen in the memory of the process. The test measures its process, so it is alone in it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use diffusion_core::config::{ModelParameters, Numerics};
use diffusion_engine::{MemoryNeed, Pipeline};
use diffusion_request::{ElementInputs, GenerateRequest, RequestValidator};
use safetensors::SafeTensors;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};
use test_support::peak_memory;
use triton_diffusion::pipelines::{
    Components, Device, DiffusionPipeline, PipelineRequest, free_cached_memory, initialize_libtorch,
};

/// Set to measure another checkpoint, with images of this side: `folder:side`.
const OTHER: &str = "TRITON_DIFFUSION_MEMORY_CHECKPOINT";
/// Factor of the channels.
const WIDER: usize = 4;
/// How far an estimate may be from what is measured, as a share of it.
const TOLERANCE: f64 = 0.25;
/// And in bytes: buffers of kernels stay from call to call, and are measured only where they are new.
const BUFFERS: u64 = 16 << 20;

#[test]
fn memory_need_is_what_requests_take() {
    initialize_libtorch();
    let wide = test_support::temporary_folder();
    let other = std::env::var(OTHER).ok();
    let (folder, cases) = match other.as_ref().map(|other| other.rsplit_once(':').unwrap()) {
        Some((folder, side)) => (Path::new(folder), vec![(side.parse().unwrap(), 1)]),
        None => {
            widen(&test_support::checkpoint("sd2_base"), wide.path());
            (wide.path(), vec![(512, 1), (384, 3)])
        }
    };
    let mut failures = Vec::new();
    for numerics in [Numerics::Fast, Numerics::Exact] {
        let parameters = ModelParameters {
            numerics,
            max_pixels: Some(1 << 22),
            ..ModelParameters::default()
        };
        let (components, _) = Components::load(folder, &parameters, Device::Cpu).unwrap();
        let validator = RequestValidator::new(components.model_info(), &parameters).unwrap();
        let mut pipeline = DiffusionPipeline::new(components.clone(), validator.limits().max_pixels);
        pipeline.init_thread().unwrap();
        // The first request loads code and weights.
        measure(&mut pipeline, request(&validator, 64, 1).into());
        let chunked: &[bool] = if numerics == Numerics::Fast {
            &[false, true]
        } else {
            &[false]
        };
        // libtorch's kernels take long; one case shows them.
        let cases = if numerics == Numerics::Fast {
            &cases[..]
        } else {
            &cases[..1]
        };
        for (&(side, images), &decode_in_chunks) in cases
            .iter()
            .flat_map(|case| chunked.iter().map(move |chunks| (case, chunks)))
        {
            let request = PipelineRequest {
                decode_in_chunks,
                ..request(&validator, side, images).into()
            };
            let need = components.memory_need(&request, validator.limits().max_pixels);
            let (step, finish) = measure(&mut pipeline, request);
            for (phase, estimated, measured) in [("step", step_of(need), step), ("finish", need.alone, finish)] {
                let ratio = estimated as f64 / measured as f64;
                let line = format!(
                    "{numerics:?}, {images} of {side}x{side}, in chunks {decode_in_chunks}, {phase}: {} MiB estimated, {} MiB measured, {ratio:.2}",
                    estimated >> 20,
                    measured >> 20
                );
                println!("{line}");
                if estimated.abs_diff(measured) as f64 > TOLERANCE * measured as f64 + BUFFERS as f64 {
                    failures.push(line);
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

fn step_of(need: MemoryNeed) -> u64 {
    need.step + need.held
}

fn request(validator: &RequestValidator, side: u32, images: u32) -> GenerateRequest {
    let gen_args = json!({
        "num_inference_steps": 2, "height": side, "width": side, "num_images_per_prompt": images, "seed": 1,
    })
    .to_string();
    let inputs = ElementInputs {
        prompt: b"a red cube",
        gen_args: Some(gen_args.as_bytes()),
        ..ElementInputs::default()
    };
    validator.validate(&inputs).unwrap()
}

/// Runs a request, and returns how much the memory of the process grows in a step and at the end.
fn measure(pipeline: &mut DiffusionPipeline, request: PipelineRequest) -> (u64, u64) {
    let in_chunks = request.decode_in_chunks;
    let mut job = pipeline.prepare(request).unwrap();
    let step = growth(|| {
        while !pipeline.is_done(&job) {
            pipeline.step(&mut [&mut job]).unwrap();
        }
    });
    let mut chunks = None;
    let finish = growth(|| chunks = pipeline.finish(job).unwrap().tiles.map(|tiles| tiles.vae));
    assert_eq!(chunks.is_some_and(|chunks| chunks > 1), in_chunks, "{chunks:?} chunks");
    (step, finish)
}

fn growth(call: impl FnOnce()) -> u64 {
    free_cached_memory(Device::Cpu).unwrap();
    // 5 resets the high-water mark; see proc(5).
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = peak_memory();
    call();
    peak_memory() - before
}

/// Copies a checkpoint with wider layers of zeros.
fn widen(from: &Path, to: &Path) {
    test_support::copy_folder(from, to);
    for (name, keys) in [
        (
            "unet",
            &[
                "block_out_channels",
                "cross_attention_dim",
                "in_channels",
                "out_channels",
            ][..],
        ),
        ("vae", &["block_out_channels", "latent_channels"]),
        ("text_encoder", &["hidden_size", "intermediate_size"]),
    ] {
        let folder = to.join(name);
        let config = folder.join("config.json");
        let mut values: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        for key in keys {
            let widened = match &values[key] {
                Value::Array(all) => all.iter().map(|value| value.as_u64().unwrap() * WIDER as u64).collect(),
                value => Value::from(value.as_u64().unwrap() * WIDER as u64),
            };
            values[key] = widened;
        }
        fs::write(&config, values.to_string()).unwrap();
        for file in fs::read_dir(&folder).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|end| end == "safetensors") {
                widen_weights(&path, name);
            }
        }
    }
}

fn widen_weights(path: &Path, model: &str) {
    let file = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let shape = |name: &str, shape: &[usize]| -> Vec<usize> {
        // Kernels of 1 and 3, images, tokens and positions stay.
        let stays = |index: usize, size: usize| {
            size <= 3 || (model == "text_encoder" && index == 0 && name.contains("embedding"))
        };
        let sizes = shape.iter().enumerate();
        sizes
            .map(|(index, &size)| if stays(index, size) { size } else { size * WIDER })
            .collect()
    };
    let shapes: HashMap<String, Vec<usize>> = tensors
        .iter()
        .map(|(name, view)| (name.to_owned(), shape(name, view.shape())))
        .collect();
    let longest = tensors
        .iter()
        .map(|(name, view)| shapes[name].iter().product::<usize>() * view.dtype().bitsize() / 8);
    let zeros = vec![0; longest.max().unwrap()];
    let views = tensors.iter().map(|(name, view)| {
        let bytes = shapes[name].iter().product::<usize>() * view.dtype().bitsize() / 8;
        (
            name.to_owned(),
            TensorView::new(view.dtype(), shapes[name].clone(), &zeros[..bytes]).unwrap(),
        )
    });
    let views: Vec<_> = views.collect();
    let target = path.with_extension("new");
    serialize_to_file(views, None, &target).unwrap();
    fs::rename(target, path).unwrap();
}
