//! The depth estimator's image processor: images to pixel values.
//!
//! Source: transformers `models/dpt/image_processing_dpt.py` (`DPTImageProcessor`).

use std::path::Path;

use serde::Deserialize;
use tch::Tensor;

use super::common::{MAX_SIDE, PerChannel, PixelValues, Size, check_side, filter};
use crate::weights::read_json;
use diffusion_core::{Error, Result};
use diffusion_image::RgbImage;
use diffusion_image::resize::{self, Filter};

/// `feature_extractor/preprocessor_config.json`, with transformers' names and defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Config {
    image_processor_type: Option<String>,
    /// The name of `image_processor_type` in transformers before 4.26.
    feature_extractor_type: Option<String>,
    do_resize: bool,
    size: Size,
    /// Number of one of Pillow's filters.
    resample: u8,
    keep_aspect_ratio: bool,
    ensure_multiple_of: u32,
    do_rescale: bool,
    rescale_factor: f64,
    do_normalize: bool,
    image_mean: Option<PerChannel>,
    image_std: Option<PerChannel>,
    do_pad: Option<bool>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            image_processor_type: None,
            feature_extractor_type: None,
            do_resize: true,
            size: Size::Side(384),
            resample: 3,
            keep_aspect_ratio: false,
            ensure_multiple_of: 1,
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: None,
            image_std: None,
            do_pad: None,
        }
    }
}

/// How an image is resized.
#[derive(Clone, Copy, Debug)]
struct Resize {
    height: u32,
    width: u32,
    keep_aspect_ratio: bool,
    multiple: u32,
    filter: Filter,
}

impl Resize {
    fn new(config: &Config) -> Result<Self> {
        let (height, width) = config.size.height_width("size")?;
        check_side("ensure_multiple_of", config.ensure_multiple_of)?;
        Ok(Self {
            height,
            width,
            keep_aspect_ratio: config.keep_aspect_ratio,
            multiple: config.ensure_multiple_of,
            filter: filter(config.resample)?,
        })
    }

    fn apply(&self, image: &RgbImage) -> Result<RgbImage> {
        let (height, width) = self.target(image.height(), image.width());
        let sides = 1.0..=f64::from(MAX_SIDE);
        if sides.contains(&height) && sides.contains(&width) {
            return resize::resize(image, width as u32, height as u32, self.filter);
        }
        Err(Error::invalid_argument(format!(
            "image: expected proportions that give the depth estimator sides of 1 to {MAX_SIDE} pixels, got {width}x{height}"
        )))
    }

    /// Returns height and width of the resized image (`get_resize_output_image_size`).
    fn target(&self, height: u32, width: u32) -> (f64, f64) {
        let (height, width) = (f64::from(height), f64::from(width));
        let mut scale_height = f64::from(self.height) / height;
        let mut scale_width = f64::from(self.width) / width;
        if self.keep_aspect_ratio {
            // The scale that is closer to 1 applies to both sides.
            if (1.0 - scale_width).abs() < (1.0 - scale_height).abs() {
                scale_height = scale_width;
            } else {
                scale_width = scale_height;
            }
        }
        let multiple = f64::from(self.multiple);
        let to_multiple = |side: f64| (side / multiple).round_ties_even() * multiple;
        (to_multiple(scale_height * height), to_multiple(scale_width * width))
    }
}

/// transformers' `DPTImageProcessor`.
#[derive(Clone, Debug)]
pub struct DptImageProcessor {
    resize: Option<Resize>,
    pixel_values: PixelValues,
}

impl DptImageProcessor {
    /// Reads `preprocessor_config.json` of a folder (`feature_extractor/`).
    ///
    /// # Errors
    /// `NotFound` without the file, `InvalidArgument` for a value out of range, `Unsupported` for an unsupported value;
    /// each names the key.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("preprocessor_config.json");
        let config: Config = read_json(&path)?;
        Self::new(&config).map_err(|error| error.context(path.display()))
    }

    fn new(config: &Config) -> Result<Self> {
        let is_dpt = |class: &Option<String>| {
            class
                .as_deref()
                .is_none_or(|class| matches!(class, "DPTImageProcessor" | "DPTFeatureExtractor"))
        };
        let supported = [
            ("image_processor_type", is_dpt(&config.image_processor_type)),
            ("feature_extractor_type", is_dpt(&config.feature_extractor_type)),
            ("do_pad", config.do_pad != Some(true)),
        ];
        if let Some((key, _)) = supported.iter().find(|(_, supported)| !supported) {
            return Err(Error::unsupported(format!(
                "{key} is set to a value that is not supported"
            )));
        }
        let mean_and_std = [config.image_mean, config.image_std].map(|values| values.unwrap_or(PerChannel::All(0.5)));
        Ok(Self {
            resize: config.do_resize.then(|| Resize::new(config)).transpose()?,
            pixel_values: PixelValues::new(
                config.do_rescale.then_some(config.rescale_factor),
                config.do_normalize.then_some(mean_and_std.into()),
            )?,
        })
    }

    /// Checks that all images become `image_size` times `image_size` pixels, the only size of the depth estimator. Where
    /// the size depends on the image, nothing is checked.
    ///
    /// # Errors
    /// `InvalidArgument` naming both sizes.
    pub fn check(&self, image_size: i64) -> Result<()> {
        let Some(resize) = self.resize.filter(|resize| !resize.keep_aspect_ratio) else {
            return Ok(());
        };
        let (height, width) = resize.target(resize.height, resize.width);
        let expected = image_size as f64;
        if (height, width) == (expected, expected) {
            return Ok(());
        }
        Err(Error::invalid_argument(format!(
            "feature_extractor/preprocessor_config.json: expected a size of {image_size}x{image_size} pixels for the \
             depth estimator, got {width}x{height}"
        )))
    }

    /// Resizes an image and computes its pixel values, about -1 to 1.
    ///
    /// # Shapes
    /// - returns `[1, 3, height, width]`, float32 on the CPU
    ///
    /// # Errors
    /// `InvalidArgument` if the image's proportions give a side of no pixels or of too many.
    pub fn preprocess(&self, image: &RgbImage) -> Result<Tensor> {
        let resized = match &self.resize {
            Some(resize) => Some(resize.apply(image)?),
            None => None,
        };
        let image = resized.as_ref().unwrap_or(image);
        let values = self.pixel_values.center_crop(image, image.height(), image.width())?;
        Ok(values.f_unsqueeze(0)?)
    }
}

#[cfg(test)]
mod tests;
