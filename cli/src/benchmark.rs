//! `benchmark`: measures the time of a model's parts on this machine.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use diffusion_core::{Error, Result};
use diffusion_engine::Pipeline;
use diffusion_request::{ElementInputs, RequestValidator};
use serde::Serialize;
use serde_json::json;
use triton_diffusion::pipelines::{Components, DiffusionPipeline, Job, device_memory};

use crate::device::DeviceArguments;
use crate::output;

/// Steps before the measurement: the first makes the plans of a GPU's libraries.
const WARM_UP_STEPS: usize = 2;

/// Measures the time of a denoising step, and of what is before and after the steps
#[derive(Args)]
pub struct Arguments {
    /// The diffusers folder, with model_index.json
    folder: PathBuf,
    #[command(flatten)]
    device: DeviceArguments,
    /// Numbers of images that are generated together
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "N,N")]
    images: Vec<u32>,
    /// Steps of each measurement, at least 3
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(3..=1000))]
    steps: u32,
    /// Height of the images in pixels [default: the model's]
    #[arg(long)]
    height: Option<u32>,
    /// Width of the images in pixels [default: the model's]
    #[arg(long)]
    width: Option<u32>,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
    /// Makes the GPU fail before the measured steps
    #[cfg(feature = "failpoints")]
    #[arg(long)]
    lose_device: bool,
}

/// The times for one number of images.
#[derive(Serialize)]
struct Run {
    images: u32,
    /// Text encoder and noise.
    prepare_ms: f64,
    /// That of the first image, which is not measured otherwise.
    first_step_ms: f64,
    /// Mean of the steps after the first two.
    step_ms: f64,
    /// VAE decoder, and the copy to the host.
    finish_ms: f64,
    /// Memory of the GPU that all processes use; absent on the CPU.
    memory_used_bytes: Option<u64>,
}

/// Measures and prints the times.
///
/// # Errors
/// The server's errors for the model and the request.
pub fn run(arguments: &Arguments) -> Result<()> {
    let parameters = arguments.device.parameters()?;
    let start = Instant::now();
    let (components, _) = Components::load(&arguments.folder, &parameters, arguments.device.device)?;
    let load_seconds = start.elapsed().as_secs_f64();
    let (dtype, weights_bytes) = (components.dtype(), components.memory.total);
    let validator = RequestValidator::new(components.model_info(), &parameters)?;
    let mut pipeline = DiffusionPipeline::new(components, validator.limits().max_pixels);
    pipeline.init_thread()?;
    let runs = arguments
        .images
        .iter()
        .map(|&images| measure(arguments, &validator, &mut pipeline, images))
        .collect::<Result<Vec<Run>>>()?;
    let device = arguments.device.device.torch_name();
    if arguments.json {
        output::print(json!({
            "device": device,
            "dtype": dtype,
            "load_seconds": load_seconds,
            "weights_bytes": weights_bytes,
            "runs": runs,
        }));
        return Ok(());
    }
    output::print(format_args!(
        "{device}, {dtype}: loaded in {load_seconds:.2} s, weights of {} MiB",
        weights_bytes >> 20
    ));
    output::print("images  prepare ms  first step ms  step ms  finish ms");
    for run in runs {
        output::print(format_args!(
            "{:6}  {:10.1}  {:13.1}  {:7.2}  {:9.1}",
            run.images, run.prepare_ms, run.first_step_ms, run.step_ms, run.finish_ms
        ));
    }
    Ok(())
}

fn measure(
    arguments: &Arguments,
    validator: &RequestValidator,
    pipeline: &mut DiffusionPipeline,
    images: u32,
) -> Result<Run> {
    let request = |steps: u32| {
        let mut gen_args = json!({
            "num_inference_steps": steps,
            "num_images_per_prompt": images,
            "seed": 0,
        });
        for (key, side) in [("height", arguments.height), ("width", arguments.width)] {
            if let Some(side) = side {
                gen_args[key] = side.into();
            }
        }
        validator.validate(&ElementInputs {
            prompt: b"a photo of an astronaut riding a horse",
            negative_prompt: None,
            image: None,
            mask_image: None,
            depth_map: None,
            gen_args: Some(gen_args.to_string().as_bytes()),
        })
    };
    // The first image gets its memory from the system, page by page; those after it use the same memory again.
    let mut job = pipeline.prepare(request(1)?.into())?;
    let ((), first_step_ms) = timed(pipeline, |pipeline| step(pipeline, &mut job))?;
    pipeline.finish(job)?;
    // Every time ends when the GPU has done the work.
    let (mut job, prepare_ms) = timed(pipeline, |pipeline| pipeline.prepare(request(arguments.steps)?.into()))?;
    for _ in 0..WARM_UP_STEPS {
        step(pipeline, &mut job)?;
    }
    pipeline.synchronize()?;
    #[cfg(feature = "failpoints")]
    if arguments.lose_device {
        // The error comes with the next call, as that of a kernel would.
        let _ = triton_diffusion::torch::lose_device(arguments.device.device.into());
    }
    let (steps, steps_ms) = timed(pipeline, |pipeline| {
        let mut steps = 0;
        while !pipeline.is_done(&job) {
            step(pipeline, &mut job)?;
            steps += 1;
        }
        Ok(steps)
    })?;
    let (_, finish_ms) = timed(pipeline, |pipeline| pipeline.finish(job))?;
    Ok(Run {
        images,
        prepare_ms,
        first_step_ms,
        step_ms: steps_ms / f64::from(steps.max(1)),
        finish_ms,
        memory_used_bytes: device_memory(arguments.device.device)?.map(|memory| memory.total - memory.free),
    })
}

fn step(pipeline: &mut DiffusionPipeline, job: &mut Job) -> Result<()> {
    pipeline.step(&mut [job])?.into_iter().collect()
}

/// Returns the result of a call and the milliseconds until the device has done its work.
fn timed<T>(
    pipeline: &mut DiffusionPipeline,
    call: impl FnOnce(&mut DiffusionPipeline) -> Result<T, Error>,
) -> Result<(T, f64)> {
    let start = Instant::now();
    let value = call(pipeline)?;
    pipeline.synchronize()?;
    Ok((value, start.elapsed().as_secs_f64() * 1e3))
}
