//! The safety checker of a model folder with its image processor.
//!
//! Source: diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion.py`
//! (`run_safety_checker`).

use std::sync::Arc;

use tch::Tensor;

use crate::models::safety_checker::SafetyChecker;
use crate::processors::ClipImageProcessor;
use crate::torch::Stream;
use crate::weights::SharedModel;
use diffusion_core::{Error, Result};
use diffusion_image::RgbImage;

/// Detects images that must not be shown. A clone shares the weights.
#[derive(Clone)]
pub struct SafetyCheck {
    processor: Arc<ClipImageProcessor>,
    checker: SharedModel<SafetyChecker>,
}

impl SafetyCheck {
    /// Combines a processor and a checker.
    ///
    /// # Errors
    /// `Unsupported` if the output size of the processor is not the input size of the checker.
    pub fn new(processor: ClipImageProcessor, checker: SafetyChecker) -> Result<Self> {
        let side = checker.config().vision_config.image_size;
        let fits = |(height, width): (u32, u32)| i64::from(height) == side && i64::from(width) == side;
        if processor.output_size().is_some_and(fits) {
            return Ok(Self {
                processor: Arc::new(processor),
                checker: SharedModel::new(checker),
            });
        }
        Err(Error::unsupported(format!(
            "feature_extractor/preprocessor_config.json: expected an output size of {side}x{side} \
             pixels, the image_size of safety_checker/config.json"
        )))
    }

    /// Checks that the processor accepts images of this size. Called before they are generated.
    ///
    /// # Errors
    /// `InvalidArgument` that names height and width.
    pub fn check_size(&self, width: u32, height: u32) -> Result<()> {
        self.processor.check_size(width, height)
    }

    /// Returns a flag for each image. diffusers replaces flagged images by black ones.
    ///
    /// # Errors
    /// Those of [`SafetyCheck::check_size`].
    pub fn flags(&self, images: &[RgbImage], stream: &Stream) -> Result<Vec<bool>> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let pixel_values = images
            .iter()
            .map(|image| self.processor.preprocess(image))
            .collect::<Result<Vec<_>>>()?;
        self.checker
            .check(&stream.to_device(&Tensor::f_stack(&pixel_values, 0)?)?, stream)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use safetensors::tensor::{Dtype, SafeTensors, TensorView};
    use std::fs;
    use std::path::{Path, PathBuf};
    use tch::{Device, Kind};

    use crate::models::safety_checker::SafetyCheckerConfig;
    use crate::weights::{load_component, read_json};

    fn generated() -> PathBuf {
        test_support::checkpoint("sd1_safety")
    }

    fn load(folder: &Path) -> Result<SafetyCheck> {
        let checker = folder.join("safety_checker");
        let processor = ClipImageProcessor::open(&folder.join("feature_extractor"))?;
        let config: SafetyCheckerConfig = read_json(&checker.join("config.json"))?;
        config.check()?;
        let weights = load_component(&checker, "model", Device::Cpu, Kind::Float)?;
        SafetyCheck::new(processor, SafetyChecker::new(config, weights)?)
    }

    /// Loads a copy of the generated folder after renaming its tensors (`None` drops a tensor) and changing its files.
    fn changed(rename: impl Fn(&str) -> Option<String>, change: impl FnOnce(&Path)) -> Result<SafetyCheck> {
        let folder = test_support::temporary_folder();
        let folder = folder.path();
        for file in [
            "feature_extractor/preprocessor_config.json",
            "safety_checker/config.json",
        ] {
            fs::create_dir_all(folder.join(file).parent().unwrap()).unwrap();
            fs::copy(generated().join(file), folder.join(file)).unwrap();
        }
        let bytes = fs::read(generated().join("safety_checker/model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let numbers = 5i64.to_le_bytes();
        let mut kept: Vec<(String, TensorView<'_>)> = tensors
            .tensors()
            .into_iter()
            .filter_map(|(name, view)| Some((rename(&name)?, view)))
            .collect();
        let position_ids = TensorView::new(Dtype::I64, vec![1, 1], &numbers).unwrap();
        kept.push((
            "vision_model.vision_model.embeddings.position_ids".to_owned(),
            position_ids,
        ));
        safetensors::serialize_to_file(kept, None, &folder.join("safety_checker/model.safetensors")).unwrap();
        change(folder);
        load(folder)
    }

    fn same(name: &str) -> Option<String> {
        Some(name.to_owned())
    }

    fn message(loaded: Result<SafetyCheck>) -> String {
        loaded.err().unwrap().to_string()
    }

    /// Stripes, steep and flat, of which the generated checker flags some.
    fn stripes() -> Vec<RgbImage> {
        (1..=24u32)
            .map(|number| {
                let sample = |n: u32| match n % 3 {
                    0 => (n / 3 * number % 256) as u8,
                    1 => (n / 120 * 7 % 256) as u8,
                    _ => (number * 10) as u8,
                };
                RgbImage::new(40, 36, (0..40 * 36 * 3).map(sample).collect()).unwrap()
            })
            .collect()
    }

    #[test]
    fn tensor_names_of_newer_transformers_load() {
        let flags = load(&generated()).unwrap().flags(&stripes(), &Stream::cpu()).unwrap();
        let newer = |name: &str| Some(name.replace("vision_model.vision_model", "vision_model"));
        let newer = changed(newer, |_| ()).unwrap();
        assert_eq!(newer.flags(&stripes(), &Stream::cpu()).unwrap(), flags);
        assert!(flags.contains(&true) && flags.contains(&false), "{flags:?}");
        assert!(newer.flags(&[], &Stream::cpu()).unwrap().is_empty());
    }

    #[test]
    fn missing_or_unknown_tensor_fails_the_load() {
        let kept = |name: &str| (name != "special_care_embeds_weights").then(|| name.to_owned());
        let text = message(changed(kept, |_| ()));
        assert!(text.contains("special_care_embeds_weights is missing"), "{text}");
        let other = |name: &str| Some(name.replace("visual_projection", "text_projection"));
        assert!(message(changed(other, |_| ())).contains("visual_projection"));
    }

    #[test]
    fn processor_of_another_size_is_refused() {
        let text = message(changed(same, |folder| {
            let path = folder.join("feature_extractor/preprocessor_config.json");
            fs::write(path, r#"{"crop_size": 31, "size": 32}"#).unwrap();
        }));
        assert!(
            text.contains("preprocessor_config.json") && text.contains("32x32"),
            "{text}"
        );
        let text = message(changed(same, |folder| {
            fs::remove_file(folder.join("feature_extractor/preprocessor_config.json")).unwrap();
        }));
        assert!(text.contains("preprocessor_config.json"), "{text}");
    }

    #[test]
    fn pickle_is_refused() {
        let text = message(changed(same, |folder| {
            let weights = folder.join("safety_checker/model.safetensors");
            fs::rename(&weights, weights.with_file_name("pytorch_model.bin")).unwrap();
        }));
        assert!(text.contains("pytorch_model.bin"), "{text}");
    }

    #[test]
    fn extreme_image_size_is_refused() {
        let check = load(&generated()).unwrap();
        assert!(check.check_size(512, 512).is_ok());
        assert!(check.check_size(1 << 22, 1).is_err());
    }
}
