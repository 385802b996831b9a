//! `vae_tiny/`, which a folder may have for the tiny decoder.

use super::model_folder::ModelFolder;
use crate::models::vae::{AutoencoderKlConfig, AutoencoderTiny, AutoencoderTinyConfig};
use crate::weights::{ComponentId, LoadedWeights, SharedModel};
use diffusion_core::Result;
use diffusion_core::config::PipelineClass;

const FOLDER: &str = "vae_tiny";

pub(super) struct VaeTiny {
    config: AutoencoderTinyConfig,
    weights: ComponentId,
}

/// Opens the tiny decoder and checks that it can replace that of the VAE; `None` if there is no folder, or if the pipeline
/// is the upscaler, which does not use it. `model_index.json` need not name the folder: diffusers' pipelines have no such
/// component.
pub(super) fn open(folder: &mut ModelFolder<'_>, vae: &AutoencoderKlConfig) -> Result<Option<VaeTiny>> {
    if folder.class == PipelineClass::Upscale || !folder.component(FOLDER).is_dir() {
        return Ok(None);
    }
    let config: AutoencoderTinyConfig = folder.config(FOLDER)?;
    config.check()?;
    config.check_replaces(vae)?;
    Ok(Some(VaeTiny {
        config,
        weights: folder.diffusers_weights(FOLDER, folder.kind)?,
    }))
}

impl VaeTiny {
    pub fn build(self, weights: &mut LoadedWeights, fast: bool) -> Result<SharedModel<AutoencoderTiny>> {
        let model = AutoencoderTiny::new(self.config, weights.take(self.weights)?.fast(fast))?;
        Ok(SharedModel::new(model))
    }
}
