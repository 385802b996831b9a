//! `depth_estimator/` with its `feature_extractor/`.

use std::sync::Arc;

use super::model_folder::ModelFolder;
use crate::models::dpt::{DptConfig, DptForDepthEstimation};
use crate::processors::DptImageProcessor;
use crate::weights::{ComponentId, LoadedWeights, SharedModel};
use diffusion_core::Result;
use diffusion_core::config::PipelineClass;

/// Estimates the depth of the input image of depth to image.
#[derive(Clone)]
pub struct DepthEstimator {
    /// Turns an image into the model's input.
    pub processor: Arc<DptImageProcessor>,
    /// The model.
    pub model: SharedModel<DptForDepthEstimation>,
}

pub(super) struct Depth {
    config: DptConfig,
    processor: DptImageProcessor,
    weights: ComponentId,
}

/// Opens the depth estimator; `None` unless the pipeline is depth to image.
pub(super) fn open(folder: &mut ModelFolder<'_>) -> Result<Option<Depth>> {
    if folder.class != PipelineClass::Depth2Img {
        return Ok(None);
    }
    folder.index.require("depth_estimator", &["DPTForDepthEstimation"])?;
    folder.index.require(
        "feature_extractor",
        &["DPTImageProcessor", "DPTFeatureExtractor", "DPTImageProcessorFast"],
    )?;
    let config: DptConfig = folder.config("depth_estimator")?;
    config.check()?;
    let processor = DptImageProcessor::open(&folder.component("feature_extractor"))?;
    processor.check(config.image_size)?;
    Ok(Some(Depth {
        config,
        processor,
        weights: folder.transformers_weights("depth_estimator")?,
    }))
}

impl Depth {
    pub fn build(self, weights: &mut LoadedWeights) -> Result<DepthEstimator> {
        let model = DptForDepthEstimation::new(self.config, weights.take(self.weights)?)?;
        Ok(DepthEstimator {
            processor: Arc::new(self.processor),
            model: SharedModel::new(model),
        })
    }
}
