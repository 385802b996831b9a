//! Cropping, fitting and overlaying of images, as diffusers' inpainting does it with Pillow.
//!
//! With `padding_mask_crop` the pipeline generates a region of the image: [`crop_region`] finds the region,
//! [`resize_and_fill`] resizes the [`crop`] of image and mask to the pipeline's size, and [`apply_overlay`] pastes the
//! result. [`keep_unmasked`] is not in diffusers: it restores the kept pixels, which the VAE changes.
//!
//! Source: diffusers, `image_processor.py` (`VaeImageProcessor`), and Pillow 13.0 for the rounding.

mod overlay;
mod region;

pub use self::overlay::{apply_overlay, keep_unmasked};
pub use self::region::{Region, crop_region};

use crate::resize::{Filter, Part, resize, resize_part};
use crate::{Mask, Raster, RgbImage};
use diffusion_core::{Error, Result};

/// The filter of the pipelines' `VaeImageProcessor`.
const RESAMPLE: Filter = Filter::Lanczos;

/// Crops as Pillow's `image.crop(region)` does: pixels beyond the image are black.
///
/// # Errors
/// Internal if the region has no area.
pub fn crop<const N: usize>(image: &Raster<N>, region: Region) -> Result<Raster<N>> {
    let mut canvas = Raster::black(region.width(), region.height())?;
    canvas.paste(image, -i64::from(region.left), -i64::from(region.top));
    Ok(canvas)
}

/// Fits the whole image into the middle of `width` times `height` pixels and stretches its outermost lines or columns over
/// the rest: `resize_mode="fill"`. As in diffusers, the last line or column stays black if the rest is odd.
///
/// # Errors
/// InvalidArgument for an image so narrow that no pixel would be left; Internal if a side is 0.
pub fn resize_and_fill<const N: usize>(image: &Raster<N>, width: u32, height: u32) -> Result<Raster<N>> {
    check_sides(width, height)?;
    let (source_width, source_height) = image.size();
    let ratio = f64::from(width) / f64::from(height);
    let source_ratio = f64::from(source_width) / f64::from(source_height);
    let (inner_width, inner_height) = if ratio < source_ratio {
        (width, scaled(source_height, width, source_width))
    } else {
        (scaled(source_width, height, source_height), height)
    };
    if inner_width == 0 || inner_height == 0 {
        return Err(Error::invalid_argument(format!(
            "an image of {source_width}x{source_height} pixels is too narrow to fit into {width}x{height}"
        )));
    }
    let resized = resize(image, inner_width, inner_height, RESAMPLE)?;
    let mut canvas = Raster::black(width, height)?;
    let (left, top) = centered((width, height), (inner_width, inner_height));
    canvas.paste(&resized, left, top);
    // diffusers names no filter for the rims; Pillow's default is bicubic.
    let rim = |part: Part, width: u32, height: u32| resize_part(&resized, part, width, height, Filter::Bicubic);
    let whole = Part::whole(resized.size());
    if ratio < source_ratio {
        let rest = height / 2 - inner_height / 2;
        if rest > 0 {
            canvas.paste(&rim(whole.between_lines(0), width, rest)?, 0, 0);
            let bottom = rim(whole.between_lines(inner_height), width, rest)?;
            canvas.paste(&bottom, 0, i64::from(rest) + i64::from(inner_height));
        }
    } else if ratio > source_ratio {
        let rest = width / 2 - inner_width / 2;
        if rest > 0 {
            canvas.paste(&rim(whole.between_columns(0), rest, height)?, 0, 0);
            let right = rim(whole.between_columns(inner_width), rest, height)?;
            canvas.paste(&right, i64::from(rest) + i64::from(inner_width), 0);
        }
    }
    Ok(canvas)
}

/// Covers `width` times `height` pixels with the middle of the image: `resize_mode="crop"`.
///
/// # Errors
/// Internal if a side is 0.
pub fn resize_and_crop(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    check_sides(width, height)?;
    let (source_width, source_height) = image.size();
    let ratio = f64::from(width) / f64::from(height);
    let source_ratio = f64::from(source_width) / f64::from(source_height);
    let (inner_width, inner_height) = if ratio > source_ratio {
        (width, scaled(source_height, width, source_width))
    } else {
        (scaled(source_width, height, source_height), height)
    };
    let resized = resize(image, inner_width, inner_height, RESAMPLE)?;
    let mut canvas = Raster::black(width, height)?;
    let (left, top) = centered((width, height), (inner_width, inner_height));
    canvas.paste(&resized, left, top);
    Ok(canvas)
}

/// Exchanges black and white (`PIL.ImageOps.invert`).
pub fn invert(image: &Mask) -> Mask {
    image.map(|[value]| [255 - value])
}

fn check_sides(width: u32, height: u32) -> Result<()> {
    if width == 0 || height == 0 {
        return Err(Error::internal(format!(
            "an image cannot fit into {width}x{height} pixels"
        )));
    }
    Ok(())
}

/// Computes Python's `side * target // source`.
fn scaled(side: u32, target: u32, source: u32) -> u32 {
    let exact = u64::from(side) * u64::from(target) / u64::from(source);
    u32::try_from(exact).unwrap_or(u32::MAX)
}

/// Returns the left upper corner of `inner` in the middle of `outer`, rounded as in diffusers.
fn centered(outer: (u32, u32), inner: (u32, u32)) -> (i64, i64) {
    let start = |outer: u32, inner: u32| i64::from(outer / 2) - i64::from(inner / 2);
    (start(outer.0, inner.0), start(outer.1, inner.1))
}

impl<const CHANNELS: usize> Raster<CHANNELS> {
    fn black(width: u32, height: u32) -> Result<Self> {
        Self::new(width, height, vec![0; width as usize * height as usize * CHANNELS])
    }

    /// Pastes as Pillow's `self.paste(image, (left, top))` does; pixels beyond `self` are dropped.
    fn paste(&mut self, image: &Self, left: i64, top: i64) {
        let ((width, height), outer) = (image.size(), self.size());
        let columns = overlap(left, width, outer.0);
        if columns.is_empty() {
            return;
        }
        let line = outer.0 as usize * CHANNELS;
        for y in overlap(top, height, outer.1) {
            let from = (y as usize * width as usize + columns.start as usize) * CHANNELS;
            let x = (left + i64::from(columns.start)) as usize * CHANNELS;
            let to = (top + i64::from(y)) as usize * line + x;
            let count = columns.len() * CHANNELS;
            self.samples_mut()[to..to + count].copy_from_slice(&image.samples()[from..from + count]);
        }
    }
}

/// Returns the range of `inner` pixels at `start` that are within `outer`.
fn overlap(start: i64, inner: u32, outer: u32) -> std::ops::Range<u32> {
    let (inner, outer) = (i64::from(inner), i64::from(outer));
    let first = (-start).clamp(0, inner);
    let last = (outer - start).clamp(first, inner);
    // Both are at most `inner`, which is 32 bits wide.
    first as u32..last as u32
}

#[cfg(test)]
mod tests;
