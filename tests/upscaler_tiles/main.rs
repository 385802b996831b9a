//! The upscaler in pieces against the upscaler in one piece: nearly the same image, in less than half the memory.
//!
//! The peak of a process only ever rises, so that each way runs in a process of its own: this test starts itself again. `make tiles`
//! runs it with an image of 512x512 pixels, for which the VAE whole takes some minutes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use diffusion_core::config::ModelParameters;
use diffusion_engine::Pipeline;
use diffusion_request::{ElementInputs, RequestValidator};
use triton_diffusion::pipelines::{Components, DiffusionPipeline, Place};

/// Set in the processes that do the work: `max_pixels`, and the file for the image.
const WORK: &str = "TRITON_DIFFUSION_TILES_WORK";
/// Side of the input image; more makes the test longer.
const SIDE: &str = "TRITON_DIFFUSION_TILES_SIDE";

fn side() -> u32 {
    std::env::var(SIDE).map_or(160, |side| side.parse().unwrap())
}

/// An image that is not the same everywhere: soft shapes over a slope.
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

/// Upscales the input and writes the pixels to a file; prints the number of pieces and the peak of memory in kB.
fn work(max_pixels: u64, file: &Path) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoints/x4_upscaler");
    let parameters = ModelParameters {
        max_pixels: Some(max_pixels),
        ..ModelParameters::default()
    };
    let (components, _) = Components::load(&folder, &parameters, Place::Cpu).unwrap();
    let validator = RequestValidator::new(components.model_info(), &parameters).unwrap();
    let mut pipeline = DiffusionPipeline::new(components, validator.limits().max_pixels);
    pipeline.enter_thread().unwrap();
    let row = ElementInputs {
        prompt: b"a photo of a cat sitting on a red chair",
        image: Some(&input(side())),
        gen_args: Some(br#"{"num_inference_steps": 4, "seed": 7}"#),
        ..ElementInputs::default()
    };
    let mut job = pipeline.prepare(validator.validate(&row).unwrap()).unwrap();
    while !pipeline.is_done(&job) {
        for outcome in pipeline.step(&mut [&mut job]).unwrap() {
            outcome.unwrap();
        }
    }
    let generated = pipeline.finish(job).unwrap();
    std::fs::write(file, generated.images[0].rgb()).unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    let kilobytes = peak.split_whitespace().nth(1).unwrap();
    println!("pieces {} peak {kilobytes}", generated.tiles.unwrap().vae);
}

/// Runs the work in a process of its own: pixels, pieces, peak.
fn in_a_process(max_pixels: u64) -> (Vec<u8>, usize, u64) {
    let file = std::env::temp_dir().join(format!("triton-diffusion-tiles-{}-{max_pixels}", std::process::id()));
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "pieces_make_the_same_image_in_less_memory", "--nocapture"])
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
    std::fs::remove_file(&file).unwrap();
    (
        pixels,
        after("pieces ").parse().unwrap(),
        after("peak ").parse().unwrap(),
    )
}

#[test]
fn pieces_make_the_same_image_in_less_memory() {
    if let Ok(work_to_do) = std::env::var(WORK) {
        let (max_pixels, file) = work_to_do.split_once(' ').unwrap();
        return work(max_pixels.parse().unwrap(), Path::new(file));
    }
    let enlarged = u64::from(side() * 4).pow(2);
    let (whole, one, whole_peak) = in_a_process(enlarged);
    let (pieces, several, pieces_peak) = in_a_process(enlarged / 4);
    assert_eq!(one, 1);
    assert!(several > 4, "{several} pieces");
    assert_eq!(whole.len() as u64, enlarged * 3);
    assert_eq!(whole.len(), pieces.len());
    let differing = whole
        .chunks_exact(3)
        .zip(pieces.chunks_exact(3))
        .filter(|(a, b)| a.iter().zip(*b).any(|(a, b)| a.abs_diff(*b) > 2))
        .count();
    let share = differing as f64 / (whole.len() / 3) as f64;
    println!(
        "{}x{} in {several} pieces: {:.3} % of pixels differ by more than 2; peak {pieces_peak} kB against {whole_peak} kB",
        side(),
        side(),
        share * 100.0
    );
    assert!(share < 0.01, "{share} of the pixels differ");
    // Beside a small image the process itself weighs more than its maps.
    let parts = if side() >= 512 { 2 } else { 1 };
    assert!(pieces_peak * parts < whole_peak, "{pieces_peak} kB");
}
