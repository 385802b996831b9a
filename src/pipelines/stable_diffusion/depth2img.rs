//! `StableDiffusionDepth2ImgPipeline`.
//!
//! Source: diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion_depth2img.py`.

use tch::Tensor;

use super::img2img::noisy_latents;
use super::{PipelineSteps, Prepared, Unchanged};
use crate::pipelines::denoising_state::{DenoisingState, PrepareContext};
use crate::pipelines::depth_map::{depth_map, given_depth_map};
use diffusion_core::{Error, Result};
use diffusion_request::Depth2Img;

impl PipelineSteps for Depth2Img {
    /// Prepares as img2img does, with the depth as one more UNet channel: the given depth map, or the estimate of the
    /// model's depth estimator.
    fn prepare(&self, mut context: PrepareContext<'_>) -> Result<Prepared> {
        let (height, width) = context.latent_size();
        let image = self.image.rgb()?;
        let depth = match &self.depth_map {
            Some(map) => {
                let map = map.depth_map()?;
                let size = [i64::from(map.height()), i64::from(map.width())];
                let map = Tensor::f_from_slice(map.values())?.f_view(size)?;
                given_depth_map(&map, height, width, context.kind, context.stream)?
            }
            None => {
                let estimator = context
                    .components
                    .depth
                    .as_ref()
                    .ok_or_else(|| Error::internal("the model has no depth estimator"))?;
                let pixel_values = context.to_device(&estimator.processor.preprocess(&image)?)?;
                let estimate = || depth_map(&estimator.model.forward(&pixel_values)?, height, width);
                context.components.with_libtorch_threads(estimate)?
            }
        };
        let state = DenoisingState {
            conditioning: Some(context.repeat_per_image(depth)?),
            ..DenoisingState::new(noisy_latents(&mut context, &image, self.strength)?)
        };
        Ok((state, Box::new(Unchanged)))
    }
}
