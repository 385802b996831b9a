//! CLIP's image processor: images to the pixel values of the vision model.
//!
//! Source: transformers `models/clip/image_processing_clip.py` (`CLIPImageProcessor`).

use std::path::Path;

use serde::Deserialize;
use tch::Tensor;

use super::common::{PerChannel, PixelValues, Size, check_side, filter};
use crate::weights::read_json;
use diffusion_core::{Context, Error, Result};
use diffusion_image::RgbImage;
use diffusion_image::resize::{Filter, resize};

/// Largest number of pixels of a resized image. A very long image would exceed it when its short side grows to `size`.
const MAX_RESIZED_PIXELS: u64 = 1 << 26;

/// Mean and standard deviation of the images in CLIP's training.
const MEAN: PerChannel = PerChannel::Each([0.481_454_66, 0.457_827_5, 0.408_210_73]);
const STD: PerChannel = PerChannel::Each([0.268_629_54, 0.261_302_58, 0.275_777_11]);

/// `preprocessor_config.json`, with transformers' names and defaults. The class `CLIPFeatureExtractor` of older folders
/// equals `CLIPImageProcessor`.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Preprocessor {
    do_resize: bool,
    size: Option<Size>,
    /// Number of one of Pillow's filters.
    resample: u8,
    do_center_crop: bool,
    crop_size: Option<Size>,
    do_rescale: bool,
    rescale_factor: f64,
    do_normalize: bool,
    image_mean: Option<PerChannel>,
    image_std: Option<PerChannel>,
    /// `shortest_edge` is the side of a square.
    use_square_size: bool,
}

impl Default for Preprocessor {
    fn default() -> Self {
        Self {
            do_resize: true,
            size: None,
            resample: 3,
            do_center_crop: true,
            crop_size: None,
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: None,
            image_std: None,
            use_square_size: false,
        }
    }
}

/// The size of a resized image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// Length of the shorter side; the other keeps the proportions.
    ShortestEdge(u32),
    Exactly {
        height: u32,
        width: u32,
    },
}

impl Target {
    fn new(size: Size, use_square_size: bool) -> Result<Self> {
        match size {
            Size::Side(edge)
            | Size::Named {
                shortest_edge: Some(edge),
                ..
            } => {
                check_side("size", edge)?;
                Ok(if use_square_size {
                    Self::Exactly {
                        height: edge,
                        width: edge,
                    }
                } else {
                    Self::ShortestEdge(edge)
                })
            }
            other => {
                let (height, width) = other.height_width("size")?;
                Ok(Self::Exactly { height, width })
            }
        }
    }
}

/// transformers' `CLIPImageProcessor`.
#[derive(Debug)]
pub struct ClipImageProcessor {
    resize: Option<(Target, Filter)>,
    /// Height and width.
    crop: Option<(u32, u32)>,
    pixel_values: PixelValues,
}

impl ClipImageProcessor {
    /// Reads `preprocessor_config.json` of a folder.
    ///
    /// # Errors
    /// `NotFound` without the file, `InvalidArgument` for a wrong type or a value out of range, `Unsupported` for an
    /// unsupported value; each names the key.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("preprocessor_config.json");
        let config: Preprocessor = read_json(&path)?;
        Self::new(&config).context(|| path.display().to_string())
    }

    fn new(config: &Preprocessor) -> Result<Self> {
        let resize = || {
            let size = config.size.unwrap_or(Size::Side(224));
            Ok::<_, Error>((Target::new(size, config.use_square_size)?, filter(config.resample)?))
        };
        let crop = || config.crop_size.unwrap_or(Size::Side(224)).height_width("crop_size");
        let mean_and_std = (config.image_mean.unwrap_or(MEAN), config.image_std.unwrap_or(STD));
        Ok(Self {
            resize: config.do_resize.then(resize).transpose()?,
            crop: config.do_center_crop.then(crop).transpose()?,
            pixel_values: PixelValues::new(
                config.do_rescale.then_some(config.rescale_factor),
                config.do_normalize.then_some(mean_and_std),
            )?,
        })
    }

    /// Returns height and width of all results, if they do not depend on the image.
    pub fn output_size(&self) -> Option<(u32, u32)> {
        self.crop.or(match self.resize {
            Some((Target::Exactly { height, width }, _)) => Some((height, width)),
            _ => None,
        })
    }

    /// Checks that an image of this size can be processed.
    ///
    /// # Errors
    /// `InvalidArgument` if the proportions give a resized image of more than 2^26 pixels.
    pub fn check_size(&self, width: u32, height: u32) -> Result<()> {
        let (resized_width, resized_height) = self.resized(width, height);
        if resized_width.saturating_mul(resized_height) > MAX_RESIZED_PIXELS {
            return Err(Error::invalid_argument(format!(
                "height {height} and width {width} differ too much: the image processor would resize the image to \
                 {resized_width}x{resized_height} pixels, more than {MAX_RESIZED_PIXELS}"
            )));
        }
        Ok(())
    }

    /// Resizes and crops an image and computes its pixel values.
    ///
    /// # Shapes
    /// - returns `[3, height, width]`, float32 on the CPU
    ///
    /// # Errors
    /// The errors of [`ClipImageProcessor::check_size`].
    pub fn preprocess(&self, image: &RgbImage) -> Result<Tensor> {
        self.check_size(image.width(), image.height())?;
        let resized = match self.resize {
            Some((_, filter)) => {
                let (width, height) = self.resized(image.width(), image.height());
                // In range, since their product is.
                let side = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
                Some(resize(image, side(width), side(height), filter)?)
            }
            None => None,
        };
        let image = resized.as_ref().unwrap_or(image);
        let (height, width) = self.crop.unwrap_or((image.height(), image.width()));
        self.pixel_values.center_crop(image, height, width)
    }

    /// Returns width and height after the resize.
    fn resized(&self, width: u32, height: u32) -> (u64, u64) {
        match self.resize {
            None => (width.into(), height.into()),
            Some((Target::Exactly { height, width }, _)) => (width.into(), height.into()),
            Some((Target::ShortestEdge(edge), _)) => {
                let (short, long) = (width.min(height), width.max(height));
                // Python's quotient of integers is a double, which is then cut off.
                let product = u64::from(edge) * u64::from(long);
                let long = (product as f64 / f64::from(short)) as u64;
                if width <= height {
                    (edge.into(), long)
                } else {
                    (long, edge.into())
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
