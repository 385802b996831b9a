//! What transformers' image processors have in common: sizes, filters, and pixel values of bytes.
//!
//! Source: transformers `image_transforms.py` (`rescale`, `normalize`, `center_crop`) and `image_processing_utils.py`.
//! Its arithmetic is numpy's: a byte times a double, rounded to single, then mean and standard deviation in single. A
//! channel has 256 values, so each is computed once.

use serde::Deserialize;
use tch::Tensor;

use diffusion_core::{Error, Result};
use diffusion_image::RgbImage;
use diffusion_image::resize::Filter;

/// Largest side of a size in a configuration, in pixels.
pub const MAX_SIDE: u32 = 4096;

/// A size as configurations spell it: today an object, in older ones a number.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// One side; its meaning depends on the key.
    Side(u32),
    /// Height, width.
    HeightWidth([u32; 2]),
    /// The sides by name.
    Named {
        shortest_edge: Option<u32>,
        height: Option<u32>,
        width: Option<u32>,
    },
}

impl Size {
    /// Returns height and width, where one side makes a square.
    ///
    /// # Errors
    /// `InvalidArgument` naming `key`.
    pub fn height_width(self, key: &str) -> Result<(u32, u32)> {
        let (height, width) = match self {
            Self::Side(side) => (side, side),
            Self::HeightWidth([height, width])
            | Self::Named {
                height: Some(height),
                width: Some(width),
                ..
            } => (height, width),
            Self::Named { .. } => {
                return Err(Error::invalid_argument(format!("{key} must have height and width")));
            }
        };
        check_side(key, height)?;
        check_side(key, width)?;
        Ok((height, width))
    }
}

/// Checks that a side is from 1 to [`MAX_SIDE`].
///
/// # Errors
/// `InvalidArgument` naming `key`.
pub fn check_side(key: &str, side: u32) -> Result<()> {
    if (1..=MAX_SIDE).contains(&side) {
        return Ok(());
    }
    Err(Error::invalid_argument(format!(
        "{key} is out of range (1 to {MAX_SIDE})"
    )))
}

/// Returns the filter of one of Pillow's numbers.
///
/// # Errors
/// `Unsupported` for another number.
pub fn filter(resample: u8) -> Result<Filter> {
    match resample {
        0 => Ok(Filter::Nearest),
        1 => Ok(Filter::Lanczos),
        2 => Ok(Filter::Bilinear),
        3 => Ok(Filter::Bicubic),
        _ => Err(Error::unsupported(
            "resample must be 0 (nearest), 1 (Lanczos), 2 (bilinear) or 3 (bicubic)",
        )),
    }
}

/// One number for all channels, or one for each.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
pub enum PerChannel {
    All(f64),
    Each([f64; 3]),
}

impl PerChannel {
    /// Converts the numbers as numpy does to the dtype of an image.
    fn values(self) -> [f32; 3] {
        match self {
            Self::All(value) => [value as f32; 3],
            Self::Each(values) => values.map(|value| value as f32),
        }
    }
}

/// The pixel value of each byte of each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct PixelValues(Box<[[f32; 256]; 3]>);

impl PixelValues {
    /// Multiplies each byte by `rescale`, subtracts the mean and divides by the standard deviation.
    ///
    /// # Errors
    /// `InvalidArgument` if a value is not finite.
    pub fn new(rescale: Option<f64>, mean_and_std: Option<(PerChannel, PerChannel)>) -> Result<Self> {
        let mean_and_std = mean_and_std.map(|(mean, std)| (mean.values(), std.values()));
        let mut values = Box::new([[0.0; 256]; 3]);
        for (channel, table) in values.iter_mut().enumerate() {
            for (byte, value) in (0..=u8::MAX).zip(table) {
                *value = match rescale {
                    Some(factor) => (f64::from(byte) * factor) as f32,
                    None => f32::from(byte),
                };
                if let Some((mean, std)) = mean_and_std {
                    *value = (*value - mean[channel]) / std[channel];
                }
            }
        }
        if values.as_flattened().iter().all(|value| value.is_finite()) {
            return Ok(Self(values));
        }
        Err(Error::invalid_argument(
            "rescale_factor, image_mean and image_std must give finite pixel values",
        ))
    }

    /// Crops the middle of an image, padded with black where it is too small, and looks up its pixel values.
    ///
    /// # Shapes
    /// - returns `[3, height, width]`, float32 on the CPU
    pub fn center_crop(&self, image: &RgbImage, height: u32, width: u32) -> Result<Tensor> {
        let lines = Crop::center(image.height(), height);
        let columns = Crop::center(image.width(), width);
        let (height, width) = (height as usize, width as usize);
        let mut values = Vec::with_capacity(3 * height * width);
        for (channel, table) in self.0.iter().enumerate() {
            // The table's first value is that of black.
            let start = values.len();
            values.resize(start + height * width, table[0]);
            let source = image.rgb().chunks_exact(image.width() as usize * 3).skip(lines.skip);
            let plane = &mut values[start..];
            for (line, out) in source.zip(plane.chunks_exact_mut(width).skip(lines.pad)) {
                let pixels = line.chunks_exact(3).skip(columns.skip);
                for (pixel, out) in pixels.zip(out.iter_mut().skip(columns.pad)) {
                    *out = table[usize::from(pixel[channel])];
                }
            }
        }
        Ok(Tensor::f_from_slice(&values)?.f_view([3, height as i64, width as i64])?)
    }
}

/// How a length is cropped, or padded if it is too short.
struct Crop {
    /// Pixels of the source to skip before the first one that is used.
    skip: usize,
    /// Pixels of the result before the first one of the source.
    pad: usize,
}

impl Crop {
    /// Crops `from` pixels to the middle `to`. An odd pixel is skipped at the end, and padded at the start.
    fn center(from: u32, to: u32) -> Self {
        Self {
            skip: (from.saturating_sub(to) / 2) as usize,
            pad: to.saturating_sub(from).div_ceil(2) as usize,
        }
    }
}
