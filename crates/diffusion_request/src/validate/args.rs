//! Arguments that depend on the pipeline's limits and on each other.

use super::{ModelInfo, PipelineRules};
use crate::decoder::Decoder;
use crate::gen_args::GenArgs;
use crate::generate_request::{GenerateRequest, unet_batch_size};
use crate::preview::Preview;
use diffusion_core::config::Format;
use diffusion_core::{Error, Result};
use diffusion_image::OutputFormat;

/// Checks that a `strength` results in a denoising step. diffusers counts the whole part of steps times strength
/// (`get_timesteps`).
pub fn check_strength(strength: Option<f64>, steps: usize) -> Result<()> {
    match strength {
        Some(strength) if (steps as f64 * strength) < 1.0 => Err(Error::invalid_argument(format!(
            "`strength` {strength} with {steps} steps results in no denoising step; increase either"
        ))),
        _ => Ok(()),
    }
}

/// Decides the number of denoising steps. In diffusers, `timesteps` and `sigmas` override `num_inference_steps`. Here the
/// two must agree: no argument is ignored silently.
pub fn steps(rules: &PipelineRules, args: &GenArgs) -> Result<usize> {
    let max_steps = rules.limits().max_steps;
    let list = match (&args.timesteps, &args.sigmas) {
        (Some(list), _) => Some(("timesteps", list.len())),
        (None, Some(list)) => Some(("sigmas", list.len())),
        (None, None) => None,
    };
    let given = args.num_inference_steps;
    if let (Some((name, len)), Some(steps)) = (list, given)
        && steps != len as u64
    {
        return Err(Error::invalid_argument(format!(
            "`num_inference_steps` {steps} is not the number of `{name}`, {len}; give one of the two"
        )));
    }
    let (name, steps) = match list {
        Some((name, len)) => (name, len as u64),
        None => (
            "num_inference_steps",
            given.unwrap_or(rules.defaults().num_inference_steps.into()),
        ),
    };
    usize::try_from(steps)
        .ok()
        .filter(|_| steps <= u64::from(max_steps))
        .ok_or_else(|| {
            Error::invalid_argument(format!("{steps} steps of `{name}` are more than max_steps {max_steps}"))
        })
}

/// Checks that the request fits into one UNet call.
pub fn check_unet_batch_size(rules: &PipelineRules, images: u64, guided: bool) -> Result<()> {
    let batch_size = unet_batch_size(images, guided);
    let max = rules.limits().max_unet_batch_size;
    if batch_size <= u64::from(max) {
        return Ok(());
    }
    let why = if guided { ", doubled by guidance," } else { "" };
    Err(Error::invalid_argument(format!(
        "`num_images_per_prompt` {images}{why} needs a UNet batch size of {batch_size}, more than max_unet_batch_size {max}"
    )))
}

/// Checks the work of a request: UNet batch size times pixels times steps.
pub fn check_work(rules: &PipelineRules, request: &GenerateRequest) -> Result<()> {
    let Some(max) = rules.limits().max_work else {
        return Ok(());
    };
    let (batch_size, pixels, steps) = (request.unet_batch_size(), request.pixels(), request.denoising_steps());
    let work = (batch_size as u64).saturating_mul(pixels).saturating_mul(steps as u64);
    if work <= max {
        return Ok(());
    }
    Err(Error::invalid_argument(format!(
        "a UNet batch size of {batch_size}, {pixels} pixels and {steps} steps multiply to {work}, more than max_work {max}"
    )))
}

/// Checks `clip_skip` against the number of text encoder layers.
pub fn clip_skip(args: &GenArgs, layers: usize) -> Result<Option<usize>> {
    let checked = |skip| usize::try_from(skip).ok().filter(|skip| *skip <= layers);
    args.clip_skip
        .map(|skip| {
            checked(skip).ok_or_else(|| {
                Error::invalid_argument(format!(
                    "`clip_skip` must be an integer from 0 to {layers}, the number of text encoder layers"
                ))
            })
        })
        .transpose()
}

/// Decides the decoder. `tiny_decoder` says whether the model has an `AutoencoderTiny`.
pub fn decoder(args: &GenArgs, tiny_decoder: bool) -> Result<Decoder> {
    match args.decoder.unwrap_or_default() {
        Decoder::Tiny if !tiny_decoder => Err(Error::invalid_argument(
            "`decoder` tiny requires an AutoencoderTiny in the folder vae_tiny of the model; this model has vae only",
        )),
        decoder => Ok(decoder),
    }
}

/// Decides the steps from one progress response to the next; `None` for no progress.
pub fn progress_every(args: &GenArgs) -> Option<usize> {
    let every = args.progress_every.and_then(|steps| usize::try_from(steps).ok());
    every.filter(|steps| *steps > 0)
}

/// Decides how previews are made; `None` without progress. The safety checker does not see previews, so a model with one
/// has none.
pub fn preview(args: &GenArgs, model: &ModelInfo) -> Result<Option<Preview>> {
    let Some(preview) = args.preview.filter(|preview| *preview != Preview::Off) else {
        return Ok(None);
    };
    let refused = if model.safety_checker {
        "`preview` requires a model without a safety checker; its parameter `safety_checker` can switch the checker off"
    } else if preview == Preview::Tiny && !model.tiny_decoder {
        "`preview` tiny requires an AutoencoderTiny in the folder vae_tiny of the model"
    } else {
        return Ok(progress_every(args).map(|_| preview));
    };
    Err(Error::invalid_argument(refused))
}

/// Checks that a request for images does not ask for the description of the model.
pub fn check_description(args: &GenArgs) -> Result<()> {
    if args.describe == Some(true) {
        return Err(Error::invalid_argument(
            "`describe` must be the only key of a request, and the request must have one batch element",
        ));
    }
    Ok(())
}

/// Decides the file format and its quality for images of that height and width.
pub fn output(rules: &PipelineRules, args: &GenArgs, (height, width): (u32, u32)) -> Result<OutputFormat> {
    let defaults = rules.defaults();
    let format = args.output_format.unwrap_or(defaults.output_format);
    if height.max(width) > format.max_side() {
        return Err(Error::invalid_argument(format!(
            "`output_format` {} is limited to {} pixels a side; the image is {height} high and {width} wide",
            format.name(),
            format.max_side()
        )));
    }
    // GenArgs has checked the range of 1 to 100.
    let quality = |default| args.quality.and_then(|q| u8::try_from(q).ok()).unwrap_or(default);
    match format {
        Format::Jpeg => Ok(OutputFormat::Jpeg {
            quality: quality(defaults.jpeg_quality),
        }),
        Format::Webp => Ok(OutputFormat::Webp {
            quality: quality(defaults.webp_quality),
        }),
        Format::Png if args.quality.is_some() => Err(Error::invalid_argument(
            "`quality` requires `output_format` jpeg or webp; png is lossless",
        )),
        Format::Png => Ok(OutputFormat::Png),
    }
}
