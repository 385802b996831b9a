//! A generated image and the one that it was made from, put together.

use super::{Canvas, Region, resize_and_crop};
use crate::Mask;
use crate::RgbImage;
use diffusion_core::{Error, Result};

/// A mask of this value and above is repainted: diffusers binarizes at one half.
const REPAINTED: u8 = 128;

/// `init_image` with `image` where `mask` is white, blended where it is gray. With a `region`, which [`crop_region`] found,
/// `image` is first fitted into it.
///
/// [`crop_region`]: super::crop_region
///
/// Source: diffusers, `image_processor.py` (`apply_overlay`). Pillow rounds four times on the way, at the mask, from
/// premultiplied alpha and back, and at the composition, and so do we.
///
/// # Errors
/// InvalidArgument if mask and `init_image` differ in size; Internal if the region has no area or, without one, `image`
/// differs in size.
pub fn apply_overlay(mask: &Mask, init_image: &RgbImage, image: &RgbImage, region: Option<Region>) -> Result<RgbImage> {
    let (width, height) = (init_image.width(), init_image.height());
    if (mask.width(), mask.height()) != (width, height) {
        return Err(Error::invalid_argument(format!(
            "the mask has {}x{} pixels and the image {width}x{height}: `padding_mask_crop` needs equal sizes",
            mask.width(),
            mask.height()
        )));
    }
    let placed = match region {
        Some(region) => {
            let fitted = resize_and_crop(image, region.width(), region.height())?;
            let mut canvas = Canvas::black(width, height);
            canvas.paste(&fitted, region.left.into(), region.top.into());
            canvas.finish()?
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

/// `original` where the mask is below one half, to the byte, and `generated` elsewhere.
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
    Error::internal("images of different sizes cannot be put together")
}

/// `sample * alpha / 255`, rounded to nearest: pasting into black with a mask.
///
/// Source: Pillow, `src/libImaging/ImagingUtils.h` (`DIV255`).
fn divided_by_255(sample: u8, alpha: u8) -> u8 {
    shifted(u32::from(sample) * u32::from(alpha) + 128) as u8
}

/// About `sum / 255`, exact for what comes up here.
///
/// Source: Pillow, `src/libImaging/ImagingUtils.h` (`SHIFTFORDIV255`).
fn shifted(sum: u32) -> u32 {
    ((sum >> 8) + sum) >> 8
}

/// From premultiplied alpha (mode `RGBa`) to straight (`RGBA`), cut off.
///
/// Source: Pillow, `src/libImaging/Convert.c` (`rgba2rgbA`).
fn unpremultiplied(sample: u8, alpha: u8) -> u8 {
    match alpha {
        0 | 255 => sample,
        alpha => (255 * u32::from(sample) / u32::from(alpha)).min(255) as u8,
    }
}

/// `over` with `alpha` over an opaque `under`.
///
/// Source: Pillow, `src/libImaging/AlphaComposite.c`, where the one below is opaque: its weights have 7 bits after the point.
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
