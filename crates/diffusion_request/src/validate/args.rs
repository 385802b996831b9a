//! Arguments that need the pipeline's limits and each other.

use super::Variant;
use crate::gen_args::GenArgs;
use crate::generate_request::{Source, rows};
use diffusion_core::config::Format;
use diffusion_core::{Error, Result};
use diffusion_image::output_format::OutputFormat;

/// Height and width of the images of a request, in pixels.
pub fn output_size(source: &Source, height: u32, width: u32) -> (u32, u32) {
    match source {
        // The crop goes back into the whole image.
        Source::Inpaint {
            image,
            padding_mask_crop: Some(_),
            ..
        } => (image.height(), image.width()),
        _ => (height, width),
    }
}

/// A `strength` must leave a step to take. diffusers' count (`get_timesteps`): the whole part of steps times strength.
pub fn check_strength(source: &Source, steps: usize) -> Result<()> {
    match source {
        Source::Image { strength, .. } | Source::Depth { strength, .. } | Source::Inpaint { strength, .. }
            if (steps as f64 * strength) < 1.0 =>
        {
            Err(Error::invalid_argument(format!(
                "`strength` {strength} of {steps} steps leaves no step to take"
            )))
        }
        _ => Ok(()),
    }
}

/// The number of denoising steps. diffusers lets `timesteps` and `sigmas` win over `num_inference_steps`; here the
/// two must agree, so that nothing is silently ignored.
pub fn steps(variant: &Variant, args: &GenArgs) -> Result<usize> {
    let max_steps = variant.limits().max_steps;
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
            given.unwrap_or(variant.defaults.defaults.num_inference_steps.into()),
        ),
    };
    usize::try_from(steps)
        .ok()
        .filter(|_| steps <= u64::from(max_steps))
        .ok_or_else(|| {
            Error::invalid_argument(format!("{steps} steps of `{name}` are more than max_steps {max_steps}"))
        })
}

pub fn check_rows(variant: &Variant, images: u64, guided: bool) -> Result<()> {
    let rows = rows(images, guided);
    let max_unet_batch_size = variant.limits().max_unet_batch_size;
    if rows <= u64::from(max_unet_batch_size) {
        return Ok(());
    }
    let why = if guided { ", doubled by guidance," } else { "" };
    Err(Error::invalid_argument(format!(
        "`num_images_per_prompt` {images}{why} needs {rows} rows of a UNet call, more than max_unet_batch_size {max_unet_batch_size}"
    )))
}

pub fn output(variant: &Variant, args: &GenArgs, (height, width): (u32, u32)) -> Result<OutputFormat> {
    let defaults = &variant.defaults.defaults;
    let format = args.output_format.unwrap_or(defaults.output_format);
    if height.max(width) > format.max_side() {
        return Err(Error::invalid_argument(format!(
            "`output_format` {} holds at most {} pixels a side, the image is {height} high and {width} wide",
            format.name(),
            format.max_side()
        )));
    }
    // GenArgs has checked that a quality is 1 to 100.
    let quality = |default| args.quality.and_then(|q| u8::try_from(q).ok()).unwrap_or(default);
    match format {
        Format::Jpeg => Ok(OutputFormat::Jpeg {
            quality: quality(defaults.jpeg_quality),
        }),
        Format::Webp => Ok(OutputFormat::Webp {
            quality: quality(defaults.webp_quality),
        }),
        Format::Png if args.quality.is_some() => Err(Error::invalid_argument(
            "`quality` goes with `output_format` jpeg or webp only, png is lossless",
        )),
        Format::Png => Ok(OutputFormat::Png),
    }
}
