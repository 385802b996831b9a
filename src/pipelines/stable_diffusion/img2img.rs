//! `StableDiffusionImg2ImgPipeline`.
//!
//! Source: diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion_img2img.py`.

use tch::Tensor;

use super::{PipelineSteps, Prepared, Unchanged};
use crate::pipelines::denoising_state::{DenoisingState, PrepareContext};
use crate::processors::vae::image_to_tensor;
use diffusion_core::Result;
use diffusion_image::RgbImage;
use diffusion_image::resize::{Filter, resize};
use diffusion_request::Img2Img;

impl PipelineSteps for Img2Img {
    fn prepare(&self, mut context: PrepareContext<'_>) -> Result<Prepared> {
        let latents = noisy_latents(&mut context, &self.image.rgb()?, self.strength)?;
        Ok((DenoisingState::new(latents), Box::new(Unchanged)))
    }
}

/// Returns the latents of `image` with the noise of the first step that `strength` leaves.
///
/// # Errors
/// InvalidArgument if `strength` leaves no step.
pub fn noisy_latents(context: &mut PrepareContext<'_>, image: &RgbImage, strength: f64) -> Result<Tensor> {
    let (height, width) = (context.request.height, context.request.width);
    let image = resize(image, width, height, Filter::Lanczos)?;
    context.apply_strength(strength)?;
    let latents = context.encode(&image_to_tensor(&image)?)?;
    // `cat` keeps the memory layout, on which the bytes of the UNet's first convolution depend.
    let latents = Tensor::f_cat(&vec![&latents; context.images as usize], 0)?;
    let noise = context.noise(&latents.size())?;
    context.scheduler.add_noise(&latents, &noise)
}
