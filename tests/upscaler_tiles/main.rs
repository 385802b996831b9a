//! Compares the upscaler with tiles and chunks with the plain upscaler: nearly the same image in less than half the memory.
//!
//! The peak memory of a process never falls, so the test starts itself again in a separate process for each of the two.
//! `make tiles` runs it with an image of 512x512 pixels, which takes the plain VAE some minutes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use diffusion_core::config::ModelParameters;
use diffusion_engine::Pipeline;
use diffusion_request::{ElementInputs, RequestValidator};
use triton_diffusion::pipelines::{Components, Device, DiffusionPipeline, initialize_libtorch};

/// Set in the processes that upscale: `max_pixels`, and the file for the image.
const WORK: &str = "TRITON_DIFFUSION_TILES_WORK";
/// Side of the input image; the default is 160.
const SIDE: &str = "TRITON_DIFFUSION_TILES_SIDE";

fn side() -> u32 {
    std::env::var(SIDE).map_or(160, |side| side.parse().unwrap())
}

/// Makes an image of soft shapes over a gradient.
fn input(side: u32) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, side, side);
    encoder.set_color(png::ColorType::Rgb);
    let pixel = |x: u32, y: u32, c: u32| {
        let (x, y) = (f64::from(x) / f64::from(side), f64::from(y) / f64::from(side));
        let wave = (x * 9.0 + f64::from(c)).sin() * (y * 7.0 - f64::from(c)).cos();
        ((0.5 + 0.3 * wave + 0.2 * (x - y)) * 255.0).clamp(0.0, 255.0) as u8
    };
    let rgb: Vec<u8> = (0..side)
        .flat_map(|y| (0..side).flat_map(move |x| (0..3).map(move |c| pixel(x, y, c))))
        .collect();
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&rgb).unwrap();
    writer.finish().unwrap();
    BASE64_STANDARD.encode(file).into_bytes()
}

/// Upscales the input and writes the pixels to a file; prints the number of chunks and the peak memory in kB.
fn work(max_pixels: u64, file: &Path) {
    initialize_libtorch();
    let folder = test_support::checkpoint("x4_upscaler");
    let parameters = ModelParameters {
        max_pixels: Some(max_pixels),
        ..ModelParameters::default()
    };
    let (components, _) = Components::load(&folder, &parameters, Device::Cpu).unwrap();
    let validator = RequestValidator::new(components.model_info(), &parameters).unwrap();
    let mut pipeline = DiffusionPipeline::new(components, validator.limits().max_pixels);
    pipeline.init_thread().unwrap();
    let inputs = ElementInputs {
        prompt: b"a photo of a cat sitting on a red chair",
        image: Some(&input(side())),
        gen_args: Some(br#"{"num_inference_steps": 4, "seed": 7}"#),
        ..ElementInputs::default()
    };
    let mut job = pipeline.prepare(validator.validate(&inputs).unwrap().into()).unwrap();
    while !pipeline.is_done(&job) {
        for outcome in pipeline.step(&mut [&mut job]).unwrap() {
            outcome.unwrap();
        }
    }
    let generated = pipeline.finish(job).unwrap();
    std::fs::write(file, generated.images[0].rgb()).unwrap();
    let kilobytes = test_support::peak_memory() >> 10;
    println!("chunks {} peak {kilobytes}", generated.tiles.unwrap().vae);
}

/// Upscales in a separate process; returns the pixels, the number of chunks and the peak memory in kB.
fn upscaled(max_pixels: u64) -> (Vec<u8>, usize, u64) {
    let folder = test_support::temporary_folder();
    let file = folder.path().join("pixels");
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "upscale_chunked_needs_less_memory_for_nearly_the_same_image",
            "--nocapture",
        ])
        .env(WORK, format!("{max_pixels} {}", file.display()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    let after = |word: &str| {
        let rest = text.split(word).nth(1).unwrap();
        rest.split_whitespace().next().unwrap().to_owned()
    };
    let pixels = std::fs::read(&file).unwrap();
    (
        pixels,
        after("chunks ").parse().unwrap(),
        after("peak ").parse().unwrap(),
    )
}

#[test]
fn upscale_chunked_needs_less_memory_for_nearly_the_same_image() {
    if let Ok(work_to_do) = std::env::var(WORK) {
        let (max_pixels, file) = work_to_do.split_once(' ').unwrap();
        return work(max_pixels.parse().unwrap(), Path::new(file));
    }
    let enlarged = u64::from(side() * 4).pow(2);
    let (whole, whole_chunks, whole_peak) = upscaled(enlarged);
    let (chunked, chunks, chunked_peak) = upscaled(enlarged / 4);
    assert_eq!(whole_chunks, 1);
    assert!(chunks > 4, "{chunks} chunks");
    assert_eq!(whole.len() as u64, enlarged * 3);
    assert_eq!(whole.len(), chunked.len());
    let differing = whole
        .chunks_exact(3)
        .zip(chunked.chunks_exact(3))
        .filter(|(a, b)| a.iter().zip(*b).any(|(a, b)| a.abs_diff(*b) > 2))
        .count();
    let share = differing as f64 / (whole.len() / 3) as f64;
    println!(
        "{}x{} in {chunks} chunks: {:.3} % of pixels differ by more than 2; peak {chunked_peak} kB against {whole_peak} kB",
        side(),
        side(),
        share * 100.0
    );
    assert!(share < 0.01, "{share} of the pixels differ");
    // With a small image most of the memory is that of the process, not of feature maps.
    let factor = if side() >= 512 { 2 } else { 1 };
    assert!(chunked_peak * factor < whole_peak, "{chunked_peak} kB");
}
