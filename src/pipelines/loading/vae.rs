//! `vae/`.

use tch::Kind;

use super::model_folder::ModelFolder;
use crate::models::vae::{AutoencoderKl, AutoencoderKlConfig};
use crate::weights::{ComponentId, LoadedWeights, SharedModel};
use diffusion_core::Result;
use diffusion_core::config::PipelineClass;

/// `scaling_factor` of the x4 upscaler's VAE (`pipeline_stable_diffusion_upscale.py`).
const UPSCALE_SCALING_FACTOR: f64 = 0.08333;

pub(super) struct Vae {
    pub config: AutoencoderKlConfig,
    weights: ComponentId,
}

pub(super) fn open(folder: &mut ModelFolder<'_>) -> Result<Vae> {
    folder.index.require("vae", &["AutoencoderKL"])?;
    let mut config: AutoencoderKlConfig = folder.config("vae")?;
    config.check()?;
    let mut kind = folder.kind;
    if folder.class == PipelineClass::Upscale {
        // The pipeline ignores the value of the file; old files have none.
        config.scaling_factor = UPSCALE_SCALING_FACTOR;
    }
    // Other pipelines ignore the switch.
    let upcasts = folder.class == PipelineClass::Upscale || folder.class.is_xl();
    if upcasts && kind == Kind::Half && config.force_upcast {
        kind = Kind::Float;
    }
    Ok(Vae {
        config,
        weights: folder.diffusers_weights("vae", kind)?,
    })
}

impl Vae {
    pub fn build(self, weights: &mut LoadedWeights, fast: bool) -> Result<SharedModel<AutoencoderKl>> {
        let model = AutoencoderKl::new(self.config, weights.take(self.weights)?.fast(fast))?;
        Ok(SharedModel::new(model))
    }
}
