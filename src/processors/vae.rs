//! diffusers' `VaeImageProcessor`: images and masks to tensors, decoded tensors to images.

use tch::{Kind, Tensor};

use crate::torch::numbers::NumberOperators;
use diffusion_core::{Error, Result};
use diffusion_image::{Mask, RgbImage};

/// Converts `[images, 3, height, width]` of about -1 to 1 to bytes `[images, height, width, 3]` on the same device. Values
/// are clamped; halves round to even.
///
/// Source: diffusers `image_processor.py` (`denormalize`, `pt_to_numpy`, `numpy_to_pil`).
///
/// # Errors
/// Internal for a tensor of another shape.
pub fn image_bytes(decoded: &Tensor) -> Result<Tensor> {
    let (_, channels, _, _) = decoded.size4()?;
    if channels != 3 {
        return Err(Error::internal(format!(
            "the VAE decoder: expected 3 channels, got {channels}"
        )));
    }
    Ok(decoded
        .mul_number(0.5)?
        .add_number(0.5)?
        .clamp_numbers(0.0, 1.0)?
        .f_permute([0, 2, 3, 1])?
        .f_to_kind(Kind::Float)?
        .mul_number(255.0)?
        .f_round()?
        // numpy's cast turns NaN into 0 on this architecture.
        .f_nan_to_num(0.0, None, None)?
        .f_to_kind(Kind::Uint8)?
        .f_contiguous()?)
}

/// Converts the bytes of [`image_bytes`], on the host, to images.
///
/// # Errors
/// Internal for images beyond the address space.
pub fn images(bytes: &Tensor) -> Result<Vec<RgbImage>> {
    let (count, height, width, _) = bytes.size4()?;
    let side = |n: i64| u32::try_from(n).map_err(|_| Error::internal(format!("an image with a side of {n} pixels")));
    let (height_u32, width_u32) = (side(height)?, side(width)?);
    let size = usize::try_from(height * width * 3).map_err(|_| Error::internal("an image beyond the address space"))?;
    (0..count)
        .map(|index| {
            let mut rgb = vec![0u8; size];
            bytes.f_get(index)?.f_copy_data_u8(&mut rgb, size)?;
            RgbImage::new(width_u32, height_u32, rgb)
        })
        .collect()
}

/// Converts an image to `[1, 3, height, width]` float32 of -1 to 1.
///
/// The memory layout stays channels-last, as in diffusers (`pil_to_numpy`, `numpy_to_pt` and `normalize` of
/// `image_processor.py`); the bytes of convolutions depend on the layout.
pub fn image_to_tensor(image: &RgbImage) -> Result<Tensor> {
    let values = unit_range(image.rgb(), image.height(), image.width(), 3)?;
    values.mul_number(2.0)?.sub_number(1.0)
}

/// Converts a mask to `[1, 1, height, width]` float32 of 0 to 1.
pub fn mask_to_tensor(image: &Mask) -> Result<Tensor> {
    unit_range(image.values(), image.height(), image.width(), 1)
}

/// Scales bytes `[height, width, channels]` to 0 to 1, `[1, channels, height, width]`.
fn unit_range(bytes: &[u8], height: u32, width: u32, channels: i64) -> Result<Tensor> {
    let shape = [1, i64::from(height), i64::from(width), channels];
    Ok(Tensor::f_from_slice(bytes)?
        .f_view(shape)?
        .f_to_kind(Kind::Float)?
        .div_number(255.0)?
        .f_permute([0, 3, 1, 2])?)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn values_are_clamped_and_halves_round_to_even() {
        // -1 is 0 and 1 is 255; `half` is between two bytes.
        let half = |n: f32| (n + 0.5) / 255.0 * 2.0 - 1.0;
        let values = [
            -1.0,
            1.0,
            -7.0,
            7.0,
            0.0,
            half(0.0),
            half(2.0),
            f32::NAN,
            0.2,
            0.2,
            0.2,
            0.2,
        ];
        let tensor = Tensor::from_slice(&values).view([1, 3, 2, 2]);
        let result = images(&image_bytes(&tensor).unwrap()).unwrap();
        assert_eq!(result.len(), 1);
        // Pixel (0, 0) has the first value of each channel.
        assert_eq!(result[0].rgb()[..3], [0, 128, 153]);
        assert_eq!((result[0].width(), result[0].height()), (2, 2));
        assert_eq!(result[0].rgb()[3..6], [255, 0, 153]);
        assert_eq!(result[0].rgb()[9..12], [255, 0, 153]);
    }

    #[test]
    fn tensor_without_three_channels_is_an_error() {
        assert!(image_bytes(&Tensor::zeros([1, 4, 2, 2], tch::kind::FLOAT_CPU)).is_err());
    }
}
