//! What an image goes through before the depth estimator sees it.
//!
//! Source: transformers `models/dpt/image_processing_dpt.py` (`DPTImageProcessor`) and
//! `image_transforms.py` (`resize`, `rescale`, `normalize`).

use std::path::Path;

use serde::Deserialize;
use tch::Tensor;

use crate::weights::read_json;
use diffusion_core::{Error, Result};
use diffusion_image::RgbImage;
use diffusion_image::resize::{self, Filter};

/// The longest side that an image is resized to, in pixels.
const MAX_SIDE: u32 = 4096;

/// `size`, in each of the ways that transformers has written it.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Size {
    Sides { height: u32, width: u32 },
    Square(u32),
    HeightWidth(u32, u32),
}

/// One number for all channels, or one for each.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum PerChannel {
    All(f64),
    Each([f64; 3]),
}

impl PerChannel {
    /// As numpy turns them into the dtype of the image.
    fn values(self) -> [f32; 3] {
        match self {
            Self::All(value) => [value as f32; 3],
            Self::Each(values) => values.map(|value| value as f32),
        }
    }
}

/// `feature_extractor/preprocessor_config.json`, with transformers' names and defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Config {
    image_processor_type: Option<String>,
    /// The key of transformers before 4.26.
    feature_extractor_type: Option<String>,
    do_resize: bool,
    size: Size,
    /// Pillow's number of a filter.
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
            size: Size::Square(384),
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

/// How an image is to be resized.
#[derive(Clone, Copy, Debug)]
struct Resize {
    height: u32,
    width: u32,
    keep_aspect_ratio: bool,
    multiple: u32,
    filter: Filter,
}

impl Resize {
    /// Height and width of the result for an image (`get_resize_output_image_size`).
    fn target(&self, height: u32, width: u32) -> (f64, f64) {
        let (height, width) = (f64::from(height), f64::from(width));
        let mut scale_height = f64::from(self.height) / height;
        let mut scale_width = f64::from(self.width) / width;
        if self.keep_aspect_ratio {
            // The side that changes less decides.
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
    /// What each byte of each channel becomes.
    values: Box<[[f32; 256]; 3]>,
}

impl DptImageProcessor {
    /// Reads `preprocessor_config.json` in `folder` (`feature_extractor/`).
    ///
    /// # Errors
    /// `NotFound` without the file; `InvalidArgument` for a value that is out of range and
    /// `Unsupported` for one that we do not do, naming the key.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("preprocessor_config.json");
        let config: Config = read_json(&path)?;
        Self::new(&config).map_err(|error| error.context(path.display()))
    }

    fn new(config: &Config) -> Result<Self> {
        let unsupported = |key: &str| {
            Err(Error::unsupported(format!(
                "{key} is set to a value that is not supported"
            )))
        };
        let ours = |class: &Option<String>| {
            class
                .as_deref()
                .is_none_or(|class| matches!(class, "DPTImageProcessor" | "DPTFeatureExtractor"))
        };
        if !ours(&config.image_processor_type) {
            return unsupported("image_processor_type");
        }
        if !ours(&config.feature_extractor_type) {
            return unsupported("feature_extractor_type");
        }
        if config.do_pad == Some(true) {
            return unsupported("do_pad");
        }
        Ok(Self {
            resize: config.do_resize.then(|| Self::resize(config)).transpose()?,
            values: Self::values(config)?,
        })
    }

    fn resize(config: &Config) -> Result<Resize> {
        let (height, width) = match config.size {
            Size::Sides { height, width } | Size::HeightWidth(height, width) => (height, width),
            Size::Square(side) => (side, side),
        };
        if [height, width].iter().any(|side| !(1..=MAX_SIDE).contains(side)) {
            return Err(Error::invalid_argument(format!(
                "size is out of range (1 to {MAX_SIDE})"
            )));
        }
        if !(1..=MAX_SIDE).contains(&config.ensure_multiple_of) {
            return Err(Error::invalid_argument(format!(
                "ensure_multiple_of is out of range (1 to {MAX_SIDE})"
            )));
        }
        let filter = match config.resample {
            0 => Filter::Nearest,
            1 => Filter::Lanczos,
            2 => Filter::Bilinear,
            3 => Filter::Bicubic,
            _ => {
                return Err(Error::unsupported(
                    "resample must be 0 (nearest), 1 (Lanczos), 2 (bilinear) or 3 (bicubic)",
                ));
            }
        };
        Ok(Resize {
            height,
            width,
            keep_aspect_ratio: config.keep_aspect_ratio,
            multiple: config.ensure_multiple_of,
            filter,
        })
    }

    /// Rescaled in double precision and rounded to single, then normalised in single, as numpy does.
    fn values(config: &Config) -> Result<Box<[[f32; 256]; 3]>> {
        let mean = config.image_mean.unwrap_or(PerChannel::All(0.5)).values();
        let std = config.image_std.unwrap_or(PerChannel::All(0.5)).values();
        let mut values = Box::new([[0.0; 256]; 3]);
        for ((channel, mean), std) in values.iter_mut().zip(mean).zip(std) {
            for (value, byte) in channel.iter_mut().zip(0..=u8::MAX) {
                let mut number = f32::from(byte);
                if config.do_rescale {
                    number = (f64::from(byte) * config.rescale_factor) as f32;
                }
                if config.do_normalize {
                    number = (number - mean) / std;
                }
                *value = number;
            }
        }
        if values.as_flattened().iter().all(|value| value.is_finite()) {
            Ok(values)
        } else {
            Err(Error::invalid_argument(
                "rescale_factor, image_mean and image_std make a number that is not finite",
            ))
        }
    }

    /// Checks, where no image decides it, that the processor makes images of `image_size` times
    /// `image_size` pixels, which is all that the depth estimator takes.
    ///
    /// # Errors
    /// `InvalidArgument` naming both sizes.
    pub fn check(&self, image_size: i64) -> Result<()> {
        let Some(resize) = self.resize.filter(|resize| !resize.keep_aspect_ratio) else {
            return Ok(());
        };
        let (height, width) = resize.target(resize.height, resize.width);
        let wanted = image_size as f64;
        if (height, width) == (wanted, wanted) {
            return Ok(());
        }
        Err(Error::invalid_argument(format!(
            "feature_extractor/preprocessor_config.json: size comes to {width}x{height} pixels, the depth estimator takes {image_size}x{image_size}"
        )))
    }

    /// The depth estimator's `pixel_values` of an image: float32 `[1, 3, height, width]` on the CPU,
    /// of about -1 to 1.
    ///
    /// # Errors
    /// `InvalidArgument` if the image's shape would make a side of no pixels or of too many; out of
    /// memory.
    pub fn preprocess(&self, image: &RgbImage) -> Result<Tensor> {
        let Some(resize) = &self.resize else {
            return self.pixel_values(image);
        };
        let (height, width) = resize.target(image.height(), image.width());
        if [height, width]
            .iter()
            .any(|side| !(1.0..=f64::from(MAX_SIDE)).contains(side))
        {
            return Err(Error::invalid_argument(format!(
                "image: at its proportions the depth estimator would get {width}x{height} pixels, where a side may have 1 to {MAX_SIDE}"
            )));
        }
        self.pixel_values(&resize::resize(image, width as u32, height as u32, resize.filter)?)
    }

    fn pixel_values(&self, image: &RgbImage) -> Result<Tensor> {
        let mut pixels = Vec::with_capacity(image.rgb().len());
        for (channel, values) in self.values.iter().enumerate() {
            let bytes = image.rgb().iter().skip(channel).step_by(3);
            pixels.extend(bytes.map(|&byte| values[usize::from(byte)]));
        }
        let shape = [1, 3, i64::from(image.height()), i64::from(image.width())];
        Ok(Tensor::f_from_slice(&pixels)?.f_view(shape)?)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use serde_json::{Value, json};

    use super::*;
    use diffusion_core::ErrorKind;

    fn processor(config: Value) -> Result<DptImageProcessor> {
        DptImageProcessor::new(&serde_json::from_value(config).unwrap())
    }

    fn size_of(config: Value, width: u32, height: u32) -> (f64, f64) {
        let resize = processor(config).unwrap().resize.unwrap();
        let (height, width) = resize.target(height, width);
        (width, height)
    }

    #[test]
    fn every_spelling_of_a_size_is_read() {
        for size in [json!({"height": 24, "width": 24}), json!(24), json!([24, 24])] {
            let made = processor(json!({"size": size})).unwrap();
            made.check(24).unwrap();
            let error = made.check(32).unwrap_err().to_string();
            assert!(error.contains("24x24") && error.contains("32x32"), "{error}");
        }
        processor(json!({})).unwrap().check(384).unwrap();
        let class = json!({"feature_extractor_type": "DPTFeatureExtractor", "do_pad": null});
        processor(class).unwrap();
        // An image decides these.
        for config in [json!({"do_resize": false}), json!({"keep_aspect_ratio": true})] {
            processor(config).unwrap().check(7).unwrap();
        }
    }

    #[test]
    fn sizes_follow_the_image_if_asked() {
        let plain = json!({"size": 64});
        let aspect = json!({"size": 64, "keep_aspect_ratio": true});
        let multiple = json!({"size": 64, "keep_aspect_ratio": true, "ensure_multiple_of": 32});
        assert_eq!(size_of(plain, 97, 53), (64.0, 64.0));
        // Height needs 64/53, width 64/97; the former is nearer to 1.
        assert_eq!(size_of(aspect, 97, 53), (117.0, 64.0));
        assert_eq!(size_of(multiple.clone(), 97, 53), (128.0, 64.0));
        // 80 is between 64 and 96: halves go to the even one.
        assert_eq!(size_of(multiple, 80, 64), (64.0, 64.0));
    }

    #[test]
    fn wrong_values_are_refused_by_name() {
        let unsupported = [
            ("image_processor_type", json!("CLIPImageProcessor")),
            ("feature_extractor_type", json!("CLIPFeatureExtractor")),
            ("do_pad", json!(true)),
            ("resample", json!(5)),
        ];
        let invalid = [
            ("size", json!([64, 5000])),
            ("ensure_multiple_of", json!(0)),
            ("image_std", json!([0.5, 0, 0.5])),
        ];
        let refused = |(key, value): (&str, Value), kind| {
            let error = processor(json!({ key: value })).unwrap_err();
            assert_eq!(error.kind(), kind, "{key}");
            assert!(error.to_string().contains(key), "{error}");
        };
        for case in unsupported {
            refused(case, ErrorKind::Unsupported);
        }
        for case in invalid {
            refused(case, ErrorKind::InvalidArgument);
        }
        let shortest = json!({"size": {"shortest_edge": 384}});
        assert!(serde_json::from_value::<Config>(shortest).is_err());
    }

    #[test]
    fn a_sliver_is_refused_before_it_is_resized() {
        let made = processor(json!({"size": 64, "keep_aspect_ratio": true})).unwrap();
        let sliver = RgbImage::new(6400, 1, vec![0; 6400 * 3]).unwrap();
        let error = made.preprocess(&sliver).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }

    #[test]
    fn channels_are_planes() {
        let config = json!({
            "do_resize": false, "do_rescale": false, "image_mean": [1, 2, 3], "image_std": 2.0
        });
        let image = RgbImage::new(2, 1, vec![1, 2, 3, 11, 12, 13]).unwrap();
        let made = processor(config).unwrap().preprocess(&image).unwrap();
        assert_eq!(made.size(), [1, 3, 1, 2]);
        let values: Vec<f32> = made.view([-1]).try_into().unwrap();
        assert_eq!(values, [0.0, 5.0, 0.0, 5.0, 0.0, 5.0]);
    }
}
