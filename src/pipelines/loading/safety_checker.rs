//! `safety_checker/` with its `feature_extractor/`.

use super::model_folder::ModelFolder;
use crate::models::safety_checker::{SafetyChecker, SafetyCheckerConfig};
use crate::pipelines::safety_check::SafetyCheck;
use crate::processors::ClipImageProcessor;
use crate::weights::{ComponentId, LoadedWeights};
use diffusion_core::Result;

pub(super) struct OpenedChecker {
    config: SafetyCheckerConfig,
    processor: ClipImageProcessor,
    weights: ComponentId,
}

/// Opens the safety checker; `None` if the folder has none, or if it is switched off.
pub(super) fn open(
    folder: &mut ModelFolder<'_>,
    enabled: bool,
    warnings: &mut Vec<String>,
) -> Result<Option<OpenedChecker>> {
    if folder.index.component("safety_checker").is_none() {
        return Ok(None);
    }
    if !enabled {
        warnings.push("safety_checker is off: images are not checked".to_owned());
        return Ok(None);
    }
    folder
        .index
        .require("safety_checker", &["StableDiffusionSafetyChecker"])?;
    folder.index.require(
        "feature_extractor",
        &["CLIPImageProcessor", "CLIPFeatureExtractor", "CLIPImageProcessorFast"],
    )?;
    let processor = ClipImageProcessor::open(&folder.component("feature_extractor"))?;
    let config: SafetyCheckerConfig = folder.config("safety_checker")?;
    config.check()?;
    Ok(Some(OpenedChecker {
        config,
        processor,
        weights: folder.transformers_weights("safety_checker")?,
    }))
}

impl OpenedChecker {
    pub fn build(self, weights: &mut LoadedWeights) -> Result<SafetyCheck> {
        let checker = SafetyChecker::new(self.config, weights.take(self.weights)?)?;
        SafetyCheck::new(self.processor, checker)
    }
}
