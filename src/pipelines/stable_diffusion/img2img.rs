//! `StableDiffusionImg2ImgPipeline`.
//!
//! Source: diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion_img2img.py`.

use tch::Tensor;

use crate::pipelines::denoising_state::{Setup, Start};
use crate::processors::vae::tensor;
use diffusion_core::Result;
use diffusion_image::RgbImage;
use diffusion_image::resize::{self, Filter};

/// The latents of `image`, with as much noise as the first step that is taken expects.
///
/// # Errors
/// InvalidArgument if `strength` leaves no step; out of memory.
pub fn start(mut setup: Setup<'_>, image: &RgbImage, strength: f64) -> Result<Start> {
    Ok(Start::from(noisy_latents(&mut setup, image, strength)?))
}

/// The same, for pipelines that go on from there. The request's size is that of the image, cut to
/// what the VAE can halve.
///
/// # Errors
/// As [`start`].
pub fn noisy_latents(setup: &mut Setup<'_>, image: &RgbImage, strength: f64) -> Result<Tensor> {
    let (height, width) = (setup.request.height, setup.request.width);
    let image = resize::rgb(image, width, height, Filter::Lanczos)?;
    setup.begin(strength)?;
    let latents = setup.encode(&tensor(&image)?)?;
    // A copy that keeps the layout, on which the bytes of the UNet's first convolution depend.
    let latents = Tensor::f_cat(&vec![&latents; setup.images as usize], 0)?;
    let noise = setup.noise(&latents.size())?;
    setup.scheduler.add_noise(&latents, &noise)
}
