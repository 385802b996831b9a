//! A folder's safety checker with the image processor before it.
//!
//! Source: diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion.py`
//! (`run_safety_checker`).

use std::sync::Arc;

use tch::Tensor;

use crate::models::safety_checker::SafetyChecker;
use crate::processors::ClipImageProcessor;
use crate::weights::SharedModel;
use diffusion_core::{Error, Result};
use diffusion_image::encode::RgbImage;

/// Says which finished images are not to be shown. A clone shares the weights.
#[derive(Clone)]
pub struct SafetyCheck {
    processor: Arc<ClipImageProcessor>,
    checker: SharedModel<SafetyChecker>,
}

impl SafetyCheck {
    /// Puts the two together.
    ///
    /// # Errors
    /// `Unsupported` if the processor does not make images of the size that the checker takes.
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
            "feature_extractor/preprocessor_config.json: its images must have {side}x{side} \
             pixels, the image_size of safety_checker/config.json"
        )))
    }

    /// Checks that an image of this size can be looked at, which is worth knowing before it is made.
    ///
    /// # Errors
    /// `InvalidArgument`, naming height and width.
    pub fn check_size(&self, width: u32, height: u32) -> Result<()> {
        self.processor.check_size(width, height)
    }

    /// Which of the images of one job are flagged. diffusers shows black ones in their place.
    ///
    /// # Errors
    /// What [`SafetyCheck::check_size`] says; out of memory.
    pub fn flags(&self, images: &[RgbImage]) -> Result<Vec<bool>> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let pixel_values = images
            .iter()
            .map(|image| self.processor.preprocess(image))
            .collect::<Result<Vec<_>>>()?;
        self.checker.check(&Tensor::f_stack(&pixel_values, 0)?)
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

    /// What a copy of the generated folder loads as, with its tensors under the names that `rename`
    /// gives them (none: left out) and its files as `change` leaves them.
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
    fn names_of_newer_transformers_are_the_same_checker() {
        let flags = load(&generated()).unwrap().flags(&stripes()).unwrap();
        let newer = |name: &str| Some(name.replace("vision_model.vision_model", "vision_model"));
        let newer = changed(newer, |_| ()).unwrap();
        assert_eq!(newer.flags(&stripes()).unwrap(), flags);
        assert!(flags.contains(&true) && flags.contains(&false), "{flags:?}");
        assert!(newer.flags(&[]).unwrap().is_empty());
    }

    #[test]
    fn tensors_are_accounted_for() {
        let kept = |name: &str| (name != "special_care_embeds_weights").then(|| name.to_owned());
        let text = message(changed(kept, |_| ()));
        assert!(text.contains("special_care_embeds_weights is missing"), "{text}");
        let other = |name: &str| Some(name.replace("visual_projection", "text_projection"));
        assert!(message(changed(other, |_| ())).contains("visual_projection"));
    }

    #[test]
    fn the_processor_must_fit_the_checker() {
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
    fn pickles_are_refused() {
        let text = message(changed(same, |folder| {
            let weights = folder.join("safety_checker/model.safetensors");
            fs::rename(&weights, weights.with_file_name("pytorch_model.bin")).unwrap();
        }));
        assert!(text.contains("pytorch_model.bin"), "{text}");
    }

    #[test]
    fn ribbons_are_refused_beforehand() {
        let check = load(&generated()).unwrap();
        assert!(check.check_size(512, 512).is_ok());
        assert!(check.check_size(1 << 22, 1).is_err());
    }
}
