//! `StableDiffusionDepth2ImgPipeline`.
//!
//! Source: diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion_depth2img.py`.

use tch::Tensor;

use super::img2img::noisy_latents;
use crate::pipelines::denoising_state::{Setup, Start};
use crate::pipelines::depth_map::given_depth_map;
use diffusion_core::{Error, Result};
use diffusion_image::RgbImage;
use diffusion_image::depth_map::DepthMap;

/// As image to image, with the depth of the image as one more channel for the UNet: the user's own, or
/// what the estimator sees in `image`.
///
/// # Errors
/// InvalidArgument if `strength` leaves no step; out of memory.
pub fn start(mut setup: Setup<'_>, image: &RgbImage, depth_map: Option<&DepthMap>, strength: f64) -> Result<Start> {
    let (height, width) = setup.latent_size();
    let device = setup.components.device;
    let depth = match depth_map {
        Some(map) => {
            let size = [i64::from(map.height()), i64::from(map.width())];
            let map = Tensor::f_from_slice(map.values())?.f_view(size)?;
            given_depth_map(&map, height, width, device, setup.kind)?
        }
        None => {
            let estimator = setup
                .components
                .depth
                .as_ref()
                .ok_or_else(|| Error::internal("the model has no depth estimator"))?;
            let pixel_values = setup.place(&estimator.processor.preprocess(image)?)?;
            let predicted_depth = estimator.model.forward(&pixel_values)?;
            crate::pipelines::depth_map::depth_map(&predicted_depth, height, width)?
        }
    };
    let conditioning = setup.for_each_image(depth)?;
    Ok(Start {
        conditioning: Some(conditioning),
        ..Start::from(noisy_latents(&mut setup, image, strength)?)
    })
}
