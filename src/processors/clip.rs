//! How images become the pixel values that CLIP's vision model takes.
//!
//! Source: transformers `models/clip/image_processing_clip.py` (`CLIPImageProcessor`) and
//! `image_transforms.py`. Its arithmetic is numpy's: pixels times a double, rounded to single, then
//! mean and standard deviation in single. A channel has 256 values, so that each is computed once.

use std::path::Path;

use serde::Deserialize;
use tch::Tensor;

use crate::weights::read_json;
use diffusion_core::{Context, Error, Result};
use diffusion_image::RgbImage;
use diffusion_image::resize::{Filter, resize};

/// Most pixels of an image once it is resized; of a very long one, whose short side grows to
/// `size`, these would be many.
const MAX_RESIZED_PIXELS: u64 = 1 << 26;

/// Largest side of `size` and `crop_size`, in pixels.
const MAX_SIDE: u32 = 4096;

/// `preprocessor_config.json`, with transformers' names and defaults. It is named `CLIPImageProcessor`
/// or, in older folders, `CLIPFeatureExtractor`, which does the same.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Preprocessor {
    do_resize: bool,
    size: Option<SizeArgument>,
    /// Pillow's number of a filter.
    resample: u8,
    do_center_crop: bool,
    crop_size: Option<SizeArgument>,
    do_rescale: bool,
    rescale_factor: f64,
    do_normalize: bool,
    image_mean: Option<PerChannel>,
    image_std: Option<PerChannel>,
    /// Makes a square of `shortest_edge`.
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

/// A size as files give it: today an object, in older ones a number.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum SizeArgument {
    Number(u32),
    HeightWidth([u32; 2]),
    Named {
        shortest_edge: Option<u32>,
        height: Option<u32>,
        width: Option<u32>,
    },
}

/// One number for all channels, or one for each.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum PerChannel {
    Same(f64),
    Each([f64; 3]),
}

impl PerChannel {
    fn values(self) -> [f64; 3] {
        match self {
            Self::Same(value) => [value; 3],
            Self::Each(values) => values,
        }
    }
}

/// What an image is resized to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// The shorter side has this length, the other follows.
    ShortestEdge(u32),
    Exactly {
        height: u32,
        width: u32,
    },
}

/// transformers' `CLIPImageProcessor`.
#[derive(Debug)]
pub struct ClipImageProcessor {
    resize: Option<(Target, Filter)>,
    /// Height and width.
    crop: Option<(u32, u32)>,
    /// What each value of each channel becomes.
    tables: [[f32; 256]; 3],
}

impl ClipImageProcessor {
    /// Reads `preprocessor_config.json` of a folder.
    ///
    /// # Errors
    /// `NotFound` without the file; `InvalidArgument` if it is not the JSON that is wanted or a
    /// value is out of range, `Unsupported` for one that is not done here, both by key.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("preprocessor_config.json");
        let config: Preprocessor = read_json(&path)?;
        Self::new(&config).context(|| path.display().to_string())
    }

    fn new(config: &Preprocessor) -> Result<Self> {
        let resize = config
            .do_resize
            .then(|| Ok::<_, Error>((target(config)?, filter(config.resample)?)))
            .transpose()?;
        let crop = config.do_center_crop.then(|| crop_size(config.crop_size)).transpose()?;
        Ok(Self {
            resize,
            crop,
            tables: tables(config)?,
        })
    }

    /// Height and width of all results, if they do not depend on the image.
    pub fn output_size(&self) -> Option<(u32, u32)> {
        self.crop.or(match self.resize {
            Some((Target::Exactly { height, width }, _)) => Some((height, width)),
            _ => None,
        })
    }

    /// Checks that an image of this size can be processed.
    ///
    /// # Errors
    /// `InvalidArgument`: one side is so much longer than the other that the resized image would
    /// have more than 2^26 pixels.
    pub fn check_size(&self, width: u32, height: u32) -> Result<()> {
        let (resized_width, resized_height) = self.resized(width, height);
        if resized_width.saturating_mul(resized_height) > MAX_RESIZED_PIXELS {
            return Err(Error::invalid_argument(format!(
                "height {height} and width {width} differ too much: the image processor would make \
                 {resized_width}x{resized_height} pixels of them, more than {MAX_RESIZED_PIXELS}"
            )));
        }
        Ok(())
    }

    /// An image as float32 `[3, height, width]` on the CPU.
    ///
    /// # Errors
    /// What [`ClipImageProcessor::check_size`] says; out of memory.
    pub fn process(&self, image: &RgbImage) -> Result<Tensor> {
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
        let rows = Cut::center(image.height(), height);
        let columns = Cut::center(image.width(), width);
        let (height, width) = (height as usize, width as usize);
        let mut values = Vec::with_capacity(3 * height * width);
        for (channel, table) in self.tables.iter().enumerate() {
            // The table's first entry is black, which images are padded with.
            let start = values.len();
            values.resize(start + height * width, table[0]);
            let lines = image.rgb().chunks_exact(image.width() as usize * 3).skip(rows.skip);
            let plane = &mut values[start..];
            for (line, out) in lines.zip(plane.chunks_exact_mut(width).skip(rows.pad)) {
                let pixels = line.chunks_exact(3).skip(columns.skip);
                for (pixel, out) in pixels.zip(out.iter_mut().skip(columns.pad)) {
                    *out = table[usize::from(pixel[channel])];
                }
            }
        }
        Ok(Tensor::f_from_slice(&values)?.f_view([3, height as i64, width as i64])?)
    }

    /// Width and height after the resize.
    fn resized(&self, width: u32, height: u32) -> (u64, u64) {
        match self.resize {
            None => (width.into(), height.into()),
            Some((Target::Exactly { height, width }, _)) => (width.into(), height.into()),
            Some((Target::ShortestEdge(edge), _)) => {
                let (short, long) = (width.min(height), width.max(height));
                // Python's quotient of integers is a double, which is then cut.
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

/// Where a length is cut, or padded if it is too short.
struct Cut {
    /// Pixels of the source that are left out before the first that is taken.
    skip: usize,
    /// Pixels of the result before the first that comes from the source.
    pad: usize,
}

impl Cut {
    /// The middle `to` of `from` pixels. An odd pixel that is too much is left out at the end, an odd
    /// pixel that lacks is padded at the start.
    fn center(from: u32, to: u32) -> Self {
        Self {
            skip: (from.saturating_sub(to) / 2) as usize,
            pad: to.saturating_sub(from).div_ceil(2) as usize,
        }
    }
}

fn target(config: &Preprocessor) -> Result<Target> {
    let target = match config.size {
        None => Target::ShortestEdge(224),
        Some(SizeArgument::Number(edge)) => Target::ShortestEdge(edge),
        Some(SizeArgument::Named {
            shortest_edge: Some(edge),
            ..
        }) => Target::ShortestEdge(edge),
        Some(
            SizeArgument::HeightWidth([height, width])
            | SizeArgument::Named {
                height: Some(height),
                width: Some(width),
                ..
            },
        ) => Target::Exactly { height, width },
        Some(SizeArgument::Named { .. }) => {
            return Err(Error::invalid_argument(
                "size must have shortest_edge, or height and width",
            ));
        }
    };
    let target = match target {
        Target::ShortestEdge(edge) if config.use_square_size => Target::Exactly {
            height: edge,
            width: edge,
        },
        other => other,
    };
    let (Target::ShortestEdge(height) | Target::Exactly { height, .. }) = target;
    let (Target::ShortestEdge(width) | Target::Exactly { width, .. }) = target;
    check_sides("size", height, width)?;
    Ok(target)
}

fn crop_size(size: Option<SizeArgument>) -> Result<(u32, u32)> {
    let (height, width) = match size {
        None => (224, 224),
        Some(SizeArgument::Number(side)) => (side, side),
        Some(
            SizeArgument::HeightWidth([height, width])
            | SizeArgument::Named {
                height: Some(height),
                width: Some(width),
                ..
            },
        ) => (height, width),
        Some(SizeArgument::Named { .. }) => {
            return Err(Error::invalid_argument("crop_size must have height and width"));
        }
    };
    check_sides("crop_size", height, width)?;
    Ok((height, width))
}

fn check_sides(key: &str, height: u32, width: u32) -> Result<()> {
    let range = 1..=MAX_SIDE;
    if range.contains(&height) && range.contains(&width) {
        return Ok(());
    }
    Err(Error::invalid_argument(format!(
        "{key} is out of range (1 to {MAX_SIDE})"
    )))
}

/// The filter of Pillow's number.
fn filter(resample: u8) -> Result<Filter> {
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

/// What becomes of each value of each channel.
fn tables(config: &Preprocessor) -> Result<[[f32; 256]; 3]> {
    // Those of the images that CLIP was trained on.
    let mean = config
        .image_mean
        .unwrap_or(PerChannel::Each([0.481_454_66, 0.457_827_5, 0.408_210_73]));
    let std = config
        .image_std
        .unwrap_or(PerChannel::Each([0.268_629_54, 0.261_302_58, 0.275_777_11]));
    let mut tables = [[0.0; 256]; 3];
    for ((table, mean), std) in tables.iter_mut().zip(mean.values()).zip(std.values()) {
        for (value, entry) in (0u8..=255).zip(table.iter_mut()) {
            *entry = if config.do_rescale {
                (f64::from(value) * config.rescale_factor) as f32
            } else {
                f32::from(value)
            };
            if config.do_normalize {
                *entry = (*entry - mean as f32) / std as f32;
            }
        }
    }
    if tables.iter().flatten().all(|value| value.is_finite()) {
        Ok(tables)
    } else {
        Err(Error::invalid_argument(
            "rescale_factor, image_mean and image_std must make finite numbers of 0 to 255",
        ))
    }
}

#[cfg(test)]
mod tests;
