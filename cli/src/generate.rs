//! `generate`: an image without a server, by the code that the server runs.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use diffusion_core::Result;
use diffusion_core::config::{Dtype, ModelParameters};
use diffusion_engine::Pipeline;
use diffusion_image::encode;
use diffusion_request::{ElementInputs, GenerateRequest, Metadata, RequestValidator};
use triton_diffusion::pipelines::{Components, DiffusionPipeline, PipelineOutput, Place};

use crate::check::ParameterArguments;
use crate::dtype::Float;
use crate::inputs::RequestArguments;
use crate::{output, progress};

/// Makes an image without a server: the bytes are those that the server answers
#[derive(Args)]
pub struct Arguments {
    /// The diffusers folder, with model_index.json
    folder: PathBuf,
    #[command(flatten)]
    request: RequestArguments,
    /// Compute in this dtype [default: float32 on the CPU, float16 on a GPU]
    #[arg(long)]
    dtype: Option<Float>,
    /// cpu, or cuda:N for GPU N
    #[arg(long, default_value = "cpu")]
    device: Device,
    #[command(flatten)]
    parameters: ParameterArguments,
    /// The model's name in the image's text chunk [default: the folder's name]
    #[arg(long)]
    model_name: Option<String>,
}

/// Where the image is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Device(Place);

impl FromStr for Device {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let gpu = match text {
            "cpu" => return Ok(Self(Place::Cpu)),
            "cuda" => Some(0),
            _ => text
                .strip_prefix("cuda:")
                .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|digits| digits.parse().ok()),
        };
        gpu.map(|index| Self(Place::Gpu(index)))
            .ok_or("a device is cpu or cuda:N")
    }
}

impl Arguments {
    fn parameters(&self) -> Result<ModelParameters> {
        let mut parameters = self.parameters.read()?;
        if let Some(dtype) = self.dtype {
            parameters.dtype = match dtype {
                Float::Float32 => Dtype::Float32,
                Float::Float16 => Dtype::Float16,
                Float::Bfloat16 => Dtype::Bfloat16,
            };
        }
        Ok(parameters)
    }

    fn model_name(&self) -> String {
        let own = || {
            let whole = std::fs::canonicalize(&self.folder).ok()?;
            Some(whole.file_name()?.to_string_lossy().into_owned())
        };
        self.model_name.clone().or_else(own).unwrap_or_default()
    }
}

/// Makes the image, or images.
///
/// # Errors
/// Those that the server answers a request with, or fails the load with.
pub fn run(arguments: &Arguments) -> Result<()> {
    arguments.request.check_out()?;
    let row = arguments.request.row()?;
    let bytes = |name: &str| row.get(name).map(str::as_bytes);
    let parameters = arguments.parameters()?;

    let spinner = progress::spinner("loading");
    let loaded = Components::load(&arguments.folder, &parameters, arguments.device.0);
    spinner.finish_and_clear();
    let (components, warnings) = loaded?;
    for warning in warnings {
        output::aside(format_args!("warning: {warning}"));
    }
    let validator = RequestValidator::new(components.model_info(), &parameters)?;
    let request = validator.validate(&ElementInputs {
        prompt: bytes("prompt").unwrap_or_default(),
        negative_prompt: bytes("negative_prompt"),
        image: bytes("image"),
        mask_image: bytes("mask_image"),
        depth_map: bytes("depth_map"),
        gen_args: bytes("gen_args"),
    })?;
    let pipeline = DiffusionPipeline::new(components, validator.limits().max_pixels);
    let generated = make(pipeline, request.clone())?;

    let model = arguments.model_name();
    let images = generated
        .images
        .iter()
        .enumerate()
        .map(|(index, image)| {
            let metadata = Metadata::new(&request, generated.scheduler, &model, index);
            encode(image, &request.output, &metadata.to_json())
        })
        .collect::<Result<Vec<_>>>()?;
    tell(&request, &generated);
    for path in arguments.request.write(&images)? {
        output::line(path.display());
    }
    Ok(())
}

/// The pipeline's three parts, with a bar over its steps.
fn make(mut pipeline: DiffusionPipeline, request: GenerateRequest) -> Result<PipelineOutput> {
    pipeline.enter_thread()?;
    let mut job = pipeline.prepare(request)?;
    let (_, steps) = job.progress();
    let bar = progress::steps(steps as u64, "steps");
    while !pipeline.is_done(&job) {
        pipeline.step(&mut [&mut job])?.into_iter().collect::<Result<()>>()?;
        bar.set_position(job.progress().0 as u64);
    }
    bar.finish_and_clear();
    pipeline.finish(job)
}

/// What the server puts into the response's parameters.
fn tell(request: &GenerateRequest, generated: &PipelineOutput) {
    output::line(format_args!("seed: {}", request.seed));
    output::line(format_args!("steps_run: {}", generated.steps_run));
    output::line(format_args!("scheduler: {}", generated.scheduler));
    if generated.prompt_truncated {
        output::aside(format_args!(
            "warning: a prompt has more tokens than the text encoder takes, and was cut off"
        ));
    }
    let flagged = generated.nsfw_content_detected.iter().flatten();
    for (index, _) in flagged.enumerate().filter(|(_, flagged)| **flagged) {
        output::aside(format_args!("warning: the safety checker made image {index} black"));
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn devices_are_named_as_torch_names_them() {
        for (text, place) in [("cpu", Place::Cpu), ("cuda", Place::Gpu(0)), ("cuda:3", Place::Gpu(3))] {
            assert_eq!(text.parse::<Device>().unwrap(), Device(place));
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:+1", "CPU", "cuda:9999999999"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }
}
