//! `generate`: generates an image without a server, with the code of the server.

use std::path::PathBuf;

use clap::Args;
use diffusion_core::Result;
use diffusion_engine::Pipeline;
use diffusion_image::encode;
use diffusion_request::{ElementInputs, Metadata, RequestValidator};
use triton_diffusion::pipelines::{Components, DiffusionPipeline, PipelineOutput, PipelineRequest};

use crate::device::DeviceArguments;
use crate::inputs::RequestArguments;
use crate::{output, progress};

/// Generates an image without a server, with the same bytes as the server
#[derive(Args)]
pub struct Arguments {
    /// The diffusers folder, with model_index.json
    folder: PathBuf,
    #[command(flatten)]
    request: RequestArguments,
    #[command(flatten)]
    device: DeviceArguments,
    /// The folder of the LoRAs that gen_args ask for
    #[arg(long)]
    loras: Option<PathBuf>,
    /// The folder of the textual inversions whose words the prompts have
    #[arg(long)]
    embeddings: Option<PathBuf>,
    /// The model's name in the image's parameters [default: the folder's name]
    #[arg(long)]
    model_name: Option<String>,
}

impl Arguments {
    fn model_name(&self) -> String {
        let own = || {
            let whole = std::fs::canonicalize(&self.folder).ok()?;
            Some(whole.file_name()?.to_string_lossy().into_owned())
        };
        self.model_name.clone().or_else(own).unwrap_or_default()
    }
}

/// Generates the images.
///
/// # Errors
/// The server's errors for the model and the request.
pub fn run(arguments: &Arguments) -> Result<()> {
    arguments.request.check_out()?;
    let element = arguments.request.read()?;
    let bytes = |name: &str| element.get(name).map(str::as_bytes);
    let parameters = arguments.device.parameters()?;

    let spinner = progress::spinner("loading");
    let loaded = Components::load(&arguments.folder, &parameters, arguments.device.device);
    spinner.finish_and_clear();
    let (components, warnings) = loaded?;
    for warning in warnings {
        output::status(format_args!("warning: {warning}"));
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
    let components = match &arguments.loras {
        Some(folder) => components.with_loras(folder.clone(), None, None),
        None => components,
    };
    let components = match &arguments.embeddings {
        Some(folder) => components.with_embeddings(folder.clone(), None),
        None => components,
    };
    let adapters = components.load_adapters(&request)?;
    for warning in adapters.embeddings().warnings() {
        output::status(format_args!("warning: {warning}"));
    }
    let pipeline = DiffusionPipeline::new(components, validator.limits().max_pixels);
    let metadata = Metadata::new(&request, &arguments.model_name());
    let (seed, output_format) = (request.seed, request.output);
    let planned = PipelineRequest::from(request).with_adapters(adapters);
    let generated = generate(pipeline, planned)?;
    let images = generated
        .images
        .iter()
        .enumerate()
        .map(|(index, image)| {
            let metadata = metadata.of_image(generated.scheduler, index);
            encode(image, &output_format, &metadata, parameters.provenance)
        })
        .collect::<Result<Vec<_>>>()?;
    print_parameters(seed, &generated);
    for path in arguments.request.write(&images)? {
        output::print(path.display());
    }
    Ok(())
}

/// Runs the pipeline, with a progress bar over its steps.
fn generate(mut pipeline: DiffusionPipeline, request: PipelineRequest) -> Result<PipelineOutput> {
    pipeline.init_thread()?;
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

/// Prints the parameters of the server's response.
fn print_parameters(seed: u64, generated: &PipelineOutput) {
    output::print(format_args!("seed: {seed}"));
    output::print(format_args!("steps_run: {}", generated.steps_run));
    output::print(format_args!("scheduler: {}", generated.scheduler));
    if generated.prompt_truncated {
        output::status(format_args!(
            "warning: a prompt has more tokens than the text encoder reads and was truncated"
        ));
    }
    let flagged = generated.nsfw_content_detected.iter().flatten();
    for (index, _) in flagged.enumerate().filter(|(_, flagged)| **flagged) {
        output::status(format_args!(
            "warning: the safety checker replaced image {index} by a black image"
        ));
    }
}
