//! Combination of a generated image with the input image.

use super::{Region, resize_and_crop};
use crate::{Mask, RgbImage};
use diffusion_core::{Error, Result};

/// Smallest mask value that is repainted: diffusers binarizes at one half.
const REPAINTED: u8 = 128;

/// Pastes `image` into `init_image` where `mask` is white, and blends where it is gray. With a `region` of [`crop_region`],
/// `image` is fitted into the region first.
///
/// [`crop_region`]: super::crop_region
///
/// Source: diffusers, `image_processor.py` (`apply_overlay`). As in Pillow, rounding happens four times: at the
/// mask, to premultiplied alpha and back, and at the composition.
///
/// # Errors
/// InvalidArgument if mask and `init_image` differ in size; Internal if the region has no area or, without one, `image`
/// differs in size.
pub fn apply_overlay(mask: &Mask, init_image: &RgbImage, image: &RgbImage, region: Option<Region>) -> Result<RgbImage> {
    let (width, height) = (init_image.width(), init_image.height());
    if (mask.width(), mask.height()) != (width, height) {
        return Err(Error::invalid_argument(format!(
            "`padding_mask_crop` requires an image and a mask of the same size, got {width}x{height} and {}x{}",
            mask.width(),
            mask.height()
        )));
    }
    let placed = match region {
        Some(region) => {
            let fitted = resize_and_crop(image, region.width(), region.height())?;
            let mut canvas = RgbImage::black(width, height)?;
            canvas.paste(&fitted, region.left.into(), region.top.into());
            canvas
        }
        None => image.clone(),
    };
    if (placed.width(), placed.height()) != (width, height) {
        return Err(sizes_differ());
    }
    let rgb = mask
        .values()
        .iter()
        .zip(init_image.rgb().chunks_exact(3).zip(placed.rgb().chunks_exact(3)))
        .flat_map(|(mask, (init, image))| {
            let alpha = 255 - mask;
            [0, 1, 2].map(|channel| {
                let kept = unpremultiplied(divided_by_255(init[channel], alpha), alpha);
                composite(image[channel], kept, alpha)
            })
        })
        .collect();
    RgbImage::new(width, height, rgb)
}

/// Returns the bytes of `original` where the mask is below one half, and `generated` elsewhere.
///
/// All three have the size of the output: `original` and `mask` as the pipeline resized them.
///
/// # Errors
/// Internal if the sizes differ.
pub fn keep_unmasked(generated: &RgbImage, original: &RgbImage, mask: &Mask) -> Result<RgbImage> {
    let size = (generated.width(), generated.height());
    if (original.width(), original.height()) != size || (mask.width(), mask.height()) != size {
        return Err(sizes_differ());
    }
    let rgb = mask
        .values()
        .iter()
        .zip(generated.rgb().chunks_exact(3).zip(original.rgb().chunks_exact(3)))
        .flat_map(|(mask, (generated, original))| {
            let pixel = if *mask >= REPAINTED { generated } else { original };
            [pixel[0], pixel[1], pixel[2]]
        })
        .collect();
    RgbImage::new(size.0, size.1, rgb)
}

fn sizes_differ() -> Error {
    Error::internal("images of different sizes cannot be combined")
}

/// Computes `sample * alpha / 255`, rounded to nearest: a paste into black with a mask.
///
/// Source: Pillow, `src/libImaging/ImagingUtils.h` (`DIV255`).
fn divided_by_255(sample: u8, alpha: u8) -> u8 {
    shifted(u32::from(sample) * u32::from(alpha) + 128) as u8
}

/// Computes `sum / 255`, exact for the sums of this file.
///
/// Source: Pillow, `src/libImaging/ImagingUtils.h` (`SHIFTFORDIV255`).
fn shifted(sum: u32) -> u32 {
    ((sum >> 8) + sum) >> 8
}

/// Converts premultiplied alpha (mode `RGBa`) to straight alpha (`RGBA`), truncated.
///
/// Source: Pillow, `src/libImaging/Convert.c` (`rgba2rgbA`).
fn unpremultiplied(sample: u8, alpha: u8) -> u8 {
    match alpha {
        0 | 255 => sample,
        alpha => (255 * u32::from(sample) / u32::from(alpha)).min(255) as u8,
    }
}

/// Lays `over` with `alpha` over an opaque `under`.
///
/// Source: Pillow, `src/libImaging/AlphaComposite.c` for an opaque background: weights have 7 fractional bits.
fn composite(under: u8, over: u8, alpha: u8) -> u8 {
    const PRECISION_BITS: u32 = 7;
    if alpha == 0 {
        return under;
    }
    let alpha = u32::from(alpha);
    let weights = (alpha << PRECISION_BITS, (255 - alpha) << PRECISION_BITS);
    let sum = u32::from(over) * weights.0 + u32::from(under) * weights.1;
    (shifted(sum + (0x80 << PRECISION_BITS)) >> PRECISION_BITS) as u8
}
