//! The linear map from latents to colors.
//!
//! The latents of Stable Diffusion are nearly a small image with more channels: a linear map of each latent pixel shows
//! what the image will be. Every VAE has other latents, so the map is fitted to the VAE, by least squares, with random
//! latents and the images that they are decoded to.

use tch::{Device, Kind, Tensor};

use crate::models::vae::AutoencoderKl;
use crate::torch::numbers::{NumberOperators, full};
use crate::torch::{Generator, Stream};
use diffusion_core::Result;

/// Latents that the map is fitted to, and their height and width: 512 pixels of latents for the numbers of a few channels.
const COUNT: i64 = 8;
const SIDE: i64 = 8;
/// The sides of the random grids that are summed, with their standard deviations. As in images, neighbors differ less than
/// distant pixels. The sum has a standard deviation of about 1, as the latents of images have.
const GRIDS: [(i64, f64); 4] = [(1, 0.7), (2, 0.5), (4, 0.5), (8, 0.4)];

/// The linear map of one VAE's latents to colors of -1 to 1.
pub struct LatentColors {
    /// float32 `[channels, 3]` on the device.
    weights: Tensor,
    /// float32 `[3]` on the device.
    bias: Tensor,
}

impl LatentColors {
    /// Fits the map to a VAE. Waits for the device.
    ///
    /// # Errors
    /// Out of memory; `DeviceLost` if the GPU failed.
    pub fn fit(vae: &AutoencoderKl, stream: &Stream) -> Result<Self> {
        let config = vae.config();
        let latents = random_latents(config.latent_channels, 0)?;
        // One after the other, in the memory that a request has anyway.
        let colors = latents
            .f_split(1, 0)?
            .iter()
            .map(|one| mean_colors(vae, one, stream))
            .collect::<Result<Vec<_>>>()?;
        let colors = stream.to_host(&Tensor::f_cat(&colors, 0)?)?;
        stream.synchronize()?;

        let inputs = pixels(&latents)?;
        let colors = pixels(&colors)?;
        let ones = inputs.f_narrow(1, 0, 1)?.f_ones_like()?;
        // The driver that works for maps that are not unique too.
        let (solution, ..) = Tensor::f_cat(&[inputs, ones], 1)?.f_linalg_lstsq(&colors, None::<f64>, "gelsd")?;
        let solution = solution.f_to_kind(Kind::Float)?;
        let channels = solution.size2()?.0 - 1;
        let on_device = |part: Tensor| stream.to_device(&part.f_contiguous()?);
        Ok(Self {
            weights: on_device(solution.f_narrow(0, 0, channels)?)?,
            bias: on_device(solution.f_get(channels)?)?,
        })
    }

    /// Converts latents to colors.
    ///
    /// # Shapes
    /// - `latents`: `[images, channels, height, width]`, as the UNet takes them
    /// - returns float32 `[images, 3, height, width]`, about -1 to 1
    pub fn colors(&self, latents: &Tensor) -> Result<Tensor> {
        let pixels = latents.f_to_kind(Kind::Float)?.f_permute([0, 2, 3, 1])?;
        let colors = pixels.f_matmul(&self.weights)?.f_add(&self.bias)?;
        Ok(colors.f_permute([0, 3, 1, 2])?)
    }
}

/// Draws `[COUNT, channels, SIDE, SIDE]`.
fn random_latents(channels: i64, seed: u64) -> Result<Tensor> {
    let mut generator = Generator::new(seed)?;
    let mut sum = full(&[COUNT, channels, SIDE, SIDE], 0.0, Kind::Float, Device::Cpu)?;
    for (cells, deviation) in GRIDS {
        let grid = generator.randn(&[COUNT, channels, cells, cells], Kind::Float)?;
        let grid = grid.f_upsample_bilinear2d([SIDE, SIDE], false, None, None)?;
        sum = sum.f_add(&grid.mul_number(deviation)?)?;
    }
    Ok(sum)
}

/// Decodes latents of the host. Returns the mean color of what each latent pixel becomes, -1 to 1, float32
/// `[images, 3, height, width]` on the device.
fn mean_colors(vae: &AutoencoderKl, latents: &Tensor, stream: &Stream) -> Result<Tensor> {
    let unscaled = stream.to_device(&latents.div_number(vae.config().scaling_factor)?)?;
    let decoded = vae.decode(&unscaled.f_to_kind(vae.kind())?)?.f_to_kind(Kind::Float)?;
    let factor = [vae.config().scale_factor(); 2];
    let clamped = decoded.clamp_numbers(-1.0, 1.0)?;
    Ok(clamped.f_avg_pool2d(factor, factor, [0, 0], false, true, None::<i64>)?)
}

/// Turns `[images, channels, height, width]` into float64 `[pixels, channels]`.
fn pixels(tensor: &Tensor) -> Result<Tensor> {
    let channels = tensor.size4()?.1;
    let last = tensor.f_permute([0, 2, 3, 1])?;
    Ok(last.f_reshape([-1, channels])?.f_to_kind(Kind::Double)?)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use std::path::Path;

    use super::*;
    use crate::pipelines::Components;
    use diffusion_core::config::ModelParameters;

    #[test]
    fn colors_are_nearer_to_decoded_latents_than_their_mean() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/models/sd_base");
        let (components, _) =
            Components::load(&folder, &ModelParameters::default(), crate::torch::Device::Cpu).unwrap();
        let vae = &components.vae;
        let fitted = LatentColors::fit(vae, &Stream::cpu()).unwrap();
        // Others than those of the fit.
        let latents = random_latents(vae.config().latent_channels, 1).unwrap();
        let wanted = mean_colors(vae, &latents, &Stream::cpu()).unwrap();
        let error = |found: &Tensor| (found - &wanted).square().mean(Kind::Double).double_value(&[]);
        let colors = fitted.colors(&latents).unwrap();
        assert_eq!(colors.size(), wanted.size());
        let of_mean = error(&wanted.mean_dim([0i64, 2, 3].as_slice(), true, Kind::Float));
        assert!(error(&colors) < 0.8 * of_mean, "{} of {of_mean}", error(&colors));
    }
}
